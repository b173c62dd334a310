"""Tiers in numbers: blocks, counted since the start where nothing else is said."""

from __future__ import annotations

from dataclasses import dataclass

from baton.engine.block_pool import BlockPoolStatistics
from baton.kvtransfer.tiers.tier import TierStatistics as StoreStatistics
from baton.protos.types import TierLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerStatistics:
    """A tier below host memory; `store` is what it says of itself.

    num_wanted: asked for. num_hits: loaded. num_declined: there, but quicker to compute.
    num_stored: kept. num_dropped: not even tried, as too much was under way or the tier paused.
    num_errors counts calls that failed.
    """

    name: str
    store: StoreStatistics
    num_wanted: int
    num_hits: int
    num_declined: int
    num_stored: int
    num_dropped: int
    num_errors: int
    load_s_per_block: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TierStatistics:
    """num_wanted: full blocks of prompts when these were admitted; of them num_pool were in the
    pool and num_host came from host memory. num_declined: in host memory, but quicker to compute.
    num_stored went to host memory; num_dropped left the pool before they could."""

    num_wanted: int
    num_pool: int
    num_host: int
    num_declined: int
    num_stored: int
    num_dropped: int
    load_s_per_block: float
    host: BlockPoolStatistics
    lower: tuple[LowerStatistics, ...]


def tier_loads(
    pool: BlockPoolStatistics, tiers: TierStatistics, block_size: int
) -> tuple[TierLoad, ...]:
    """The pool, host memory and each lower tier, as gateways hear of them."""
    host = tiers.host
    load_s = tiers.load_s_per_block / block_size
    found = [
        TierLoad(
            "pool",
            pool.num_blocks - pool.num_free,
            pool.num_blocks,
            tiers.num_wanted,
            tiers.num_pool,
            0,
            0,
            0,
            0.0,
        ),
        TierLoad(
            "cpu",
            host.num_cached + host.num_in_use,
            host.num_blocks,
            tiers.num_wanted - tiers.num_pool,
            tiers.num_host,
            tiers.num_stored,
            tiers.num_dropped,
            0,
            load_s,
        ),
    ]
    for tier in tiers.lower:
        # Through host memory.
        reach_s = load_s + tier.load_s_per_block / block_size
        block_bytes = tier.store.num_bytes // tier.store.num_blocks if tier.store.num_blocks else 0
        found.append(
            TierLoad(
                tier.name,
                tier.store.num_blocks,
                tier.store.max_bytes // block_bytes if block_bytes else 0,
                tier.num_wanted,
                tier.num_hits,
                tier.num_stored,
                tier.num_dropped,
                tier.num_errors,
                reach_s,
            )
        )
    return tuple(found)
