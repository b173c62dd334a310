"""Deciding, without acting: which decode worker, local or remote prefill, which prefill worker.

Pure functions over a snapshot of the cluster, so that gateways and the simulator run the same code.
Knows neither Ray, nor torch, nor sockets, nor the time.
"""
