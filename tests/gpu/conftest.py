"""The kernel tests' fixtures serve the GPU tests too."""

from tests.kernels.conftest import nan_filled_empty, seeded

__all__ = ["nan_filled_empty", "seeded"]
