"""KV blocks beyond the pool: what leaves it is kept, and what comes back need not be computed.

Everything is decided on the engine's thread (`stack` is its face); threads of their own only move
bytes (`lane`). Blocks go from the pool to host memory before they are evicted (`write_back`), and
from there to the tiers below it (`kvtransfer.tiers`). A request's missing blocks come back in two
legs: from lower tiers into host memory while the request waits (`fetch`), and from there into the
blocks that it was given, when it is its turn (`load`).
"""
