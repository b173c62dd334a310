"""Places for KV blocks below a worker's pool: host memory, local disk, and what is shared.

`tier` is the one interface that disk and shared tiers have. All of them move blocks between
themselves and the slots of one host memory (`memory`), which is the first tier and the bounce
buffer of the others. Who decides what is stored and loaded, and when, is the engine.
"""
