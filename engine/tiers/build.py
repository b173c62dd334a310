"""Builds an engine's tiers from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from baton.engine.batch import BatchRunner
from baton.engine.block_pool import BlockPool
from baton.engine.config import EngineConfig
from baton.engine.tiers.copier import BlockCopier, Copier
from baton.engine.tiers.lane import Lane, News, ThreadLane
from baton.engine.tiers.ranks import (
    SharedCopier,
    SharedTier,
    TierRank,
    changes_from_json,
    on_all,
)
from baton.engine.tiers.seam import Tiers
from baton.engine.tiers.space import open_space
from baton.engine.tiers.stack import TierParts, TierStack
from baton.kvtransfer.tiers.tier import Tier, TierSpace
from baton.protos.clock import Clock
from baton.protos.errors import ConfigError, TransferError

MakeLane = Callable[[str, News], Lane]


def build_tiers(
    config: EngineConfig,
    runner: BatchRunner,
    blocks: BlockPool,
    clock: Clock,
    compute_s: Callable[[int], float | None],
    make_lane: MakeLane = ThreadLane,
) -> Tiers:
    """`Tiers` without any where none is configured. Raises ConfigError, with nothing left open."""
    if not config.kv_tiers.cpu_gib:
        return Tiers()
    ranks = runner.other_tiers
    space, lower = _open_all(config, runner, ranks) if ranks else _open(config, runner)
    copier: BlockCopier = Copier(runner.pool.tensor, space.memory)
    news = News()
    parts = TierParts(
        host=BlockPool(len(space.memory)),
        copier=SharedCopier(copier, ranks) if ranks else copier,
        reading=make_lane("out", news),
        writing=make_lane("in", news),
        lower=[(tier, make_lane(tier.name, news)) for tier in lower],
        news=news,
    )
    return TierStack(blocks, config.block_size, parts, clock, compute_s)


def _open(config: EngineConfig, runner: BatchRunner) -> tuple[TierSpace, list[Tier]]:
    return open_space(config, runner.pool, runner.model.digest)


def _open_all(
    config: EngineConfig, runner: BatchRunner, ranks: Sequence[TierRank]
) -> tuple[TierSpace, list[Tier]]:
    """On every rank. What the others opened ends with them."""
    own: list[Tier] = []

    def open_own() -> TierSpace:
        space, tiers = _open(config, runner)
        own.extend(tiers)
        return space

    try:
        space, answers = on_all(ranks, open_own, "tiers_open")
    except TransferError as error:
        for tier in own:
            tier.close()
        raise ConfigError(f"another rank: {error.message}", param="kv_tiers") from error
    return space, [
        SharedTier(tier, place, ranks, [changes_from_json(a["changes"][place]) for a in answers])
        for place, tier in enumerate(own)
    ]
