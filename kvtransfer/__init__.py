"""Moving KV blocks from one worker's pool into another's, and knowing when they have arrived.

This layer owns the description of a pool (`layout`), the seam to whatever moves the bytes
(`connector`, with `nixl` and `local` behind it) and the pure state of one request's hand-over
(`session`). It knows tensors, addresses and block indices: nothing of requests' tokens, of
engines, of asyncio, gRPC or Ray. Callbacks come from a connector's own thread.
"""
