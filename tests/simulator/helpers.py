from __future__ import annotations

from dataclasses import replace

from baton.protos.hashing import HASH_BYTES
from baton.router.config import RouterConfig
from baton.router.times import H100_8B, ModelTimes
from baton.simulator.config import SimConfig
from baton.simulator.request import Trace, TraceRequest


def times(*, chunk_tokens: int = 512) -> ModelTimes:
    """The default times, but with that many prompt tokens to a step in either pool."""
    prefill = replace(H100_8B.prefill_pool.prefill, chunk_tokens=chunk_tokens)
    pool = replace(H100_8B.prefill_pool, prefill=prefill)
    return replace(H100_8B, prefill_pool=pool, decode_pool=pool)


def config(policy: str = "cost", **options: object) -> SimConfig:
    router = RouterConfig(policy=policy, itl_slo_s=0.05)
    values: dict[str, object] = {"prefill": 1, "decode": 1, "router": router}
    return SimConfig(**{**values, **options})  # type: ignore[arg-type]


def trace(*requests: tuple[float, int, int], prefix: int = 0) -> Trace:
    """(arrival, prompt tokens, output tokens) each; the first `prefix` blocks are the same."""
    made = []
    for index, (arrival_s, num_prompt, num_output) in enumerate(requests):
        names = [
            block if block < prefix else 1_000_000 * (index + 1) + block
            for block in range(num_prompt // 512)
        ]
        hashes = tuple(name.to_bytes(HASH_BYTES, "little") for name in names)
        made.append(TraceRequest(index, arrival_s, num_prompt, num_output, hashes))
    return Trace("test", 512, tuple(made))
