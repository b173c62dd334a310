"""A discrete-event twin of the cluster that runs the real `router` code against request traces.

Requests of a trace arrive, are planned by `baton.router`, and are served by models of engines with
step times, KV memory, prefix caches and transfers. Knows no clock but its own, no network, no
torch, no Ray.
"""
