"""What tests with LMCache need: the package, a server, a tier with memory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec

import pytest
import torch
from tests.kvtransfer.sides import LAYOUT

from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.lmcache.config import LMCacheConfig
from baton.kvtransfer.lmcache.server import LMCacheServer
from baton.kvtransfer.lmcache.tier import LMCacheTier
from baton.kvtransfer.tiers.tier import TierSpace

needs_lmcache = pytest.mark.skipif(
    find_spec("lmcache") is None, reason="LMCache is not installed: baton-serve[lmcache]"
)
# Large enough to be worth a copy, small enough for hundreds of them.
BLOCKS = replace(LAYOUT, block_size=16, head_dim=64)


@contextmanager
def running_server(*, memory_gib: float = 0.0625, storage: str = "") -> Iterator[LMCacheServer]:
    config = LMCacheConfig(memory_gib=memory_gib, storage=(storage,) if storage else ())
    server = LMCacheServer(config)
    server.start()
    try:
        yield server
    finally:
        server.close()


@dataclass
class Place:
    """A tier and the memory that it fills."""

    tier: LMCacheTier
    memory: torch.Tensor

    def fill(self, slots: list[int]) -> torch.Tensor:
        """Noise in these slots, and a copy of it."""
        shape = (len(slots), self.memory.shape[1])
        self.memory[slots] = torch.randint(0, 256, shape, dtype=torch.uint8)
        return self.memory[slots].clone()


def make_place(
    address: str,
    *,
    num_slots: int = 64,
    layout: KVLayout = BLOCKS,
    model_digest: str = "weights",
    timeout_s: float = 5.0,
) -> Place:
    memory = torch.zeros((num_slots, layout.block_bytes), dtype=torch.uint8)
    space = TierSpace(memory=memory, layout=layout, model_digest=model_digest)
    return Place(LMCacheTier(address, space, timeout_s=timeout_s), memory)
