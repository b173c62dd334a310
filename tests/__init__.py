"""A package, so that no other `tests` that some distribution installed is taken for it."""
