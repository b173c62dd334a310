"""Running one model: token in, token out, synchronous.

Owns the scheduler, the paged KV pool and its prefix cache, the runner, the models and the sampler.
It knows no Ray, no network and no asyncio: a worker drives it, on one thread (`engine.loop`).
"""
