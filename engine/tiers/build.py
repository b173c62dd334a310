"""Builds an engine's tiers from its configuration."""

from __future__ import annotations

from collections.abc import Callable

from baton.engine.batch import BlockStore
from baton.engine.block_pool import BlockPool
from baton.engine.config import EngineConfig
from baton.engine.tiers.copier import Copier, host_memory
from baton.engine.tiers.lane import Lane, News, ThreadLane
from baton.engine.tiers.seam import Tiers
from baton.engine.tiers.stack import TierParts, TierStack
from baton.kvtransfer.tiers.factory import make_tiers
from baton.kvtransfer.tiers.tier import TierSpace
from baton.protos.clock import Clock
from baton.protos.errors import ConfigError

MakeLane = Callable[[str, News], Lane]


def build_tiers(
    config: EngineConfig,
    store: BlockStore,
    model_digest: str,
    blocks: BlockPool,
    clock: Clock,
    compute_s: Callable[[int], float | None],
    make_lane: MakeLane = ThreadLane,
) -> Tiers:
    """`Tiers` without any where none is configured. Raises ConfigError, with nothing left open."""
    wanted, block_bytes = config.kv_tiers, store.layout.block_bytes
    if not wanted.cpu_gib:
        return Tiers()
    num_slots = int(wanted.cpu_gib * (1 << 30)) // block_bytes
    if not num_slots:
        raise ConfigError(
            f"kv_tiers.cpu_gib is {wanted.cpu_gib:g}, less than a KV block of {block_bytes} bytes",
            param="kv_tiers.cpu_gib",
        )
    memory = host_memory(num_slots, block_bytes, store.tensor.device)
    space = TierSpace(memory=memory, layout=store.layout, model_digest=model_digest)
    try:
        lower = make_tiers(wanted, space)
    except ConfigError as error:
        raise ConfigError(f"kv_tiers.{error.message}", param=f"kv_tiers.{error.param}") from error
    news = News()
    parts = TierParts(
        host=BlockPool(num_slots),
        copier=Copier(store.tensor, memory),
        reading=make_lane("out", news),
        writing=make_lane("in", news),
        lower=[(tier, make_lane(tier.name, news)) for tier in lower],
        news=news,
    )
    return TierStack(blocks, config.block_size, parts, clock, compute_s)
