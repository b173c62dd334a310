"""Tiers below host memory, as configured."""

from __future__ import annotations

from baton.kvtransfer.lmcache.tier import LMCacheTier
from baton.kvtransfer.tiers.config import TierConfig
from baton.kvtransfer.tiers.disk import DiskTier
from baton.kvtransfer.tiers.tier import Tier, TierSpace


def make_tiers(config: TierConfig, space: TierSpace) -> list[Tier]:
    """Nearest first. Raises ConfigError, with none of them left open."""
    tiers: list[Tier] = []
    shared = [LMCacheTier(config.lmcache, space)] if config.lmcache else []
    if config.disk_path:
        tiers.append(DiskTier(config.disk_path, int(config.disk_gib * (1 << 30)), space))
    return [*tiers, *shared]
