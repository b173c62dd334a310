"""A discrete-event twin of the cluster that runs the real `router` code against request traces.

Not written yet: only the place is taken, so that the import rule covers it from the start.
"""
