"""Whether a cluster needs an LMCache server, and which."""

from __future__ import annotations

import dataclasses

from baton.cluster.config import BatonConfig, PoolConfig
from baton.kvtransfer.lmcache.config import AUTO, check_installed
from baton.protos.errors import ConfigError


def check_lmcache(config: BatonConfig) -> None:
    """Raises ConfigError where workers want LMCache, and it is not installed or nobody runs it."""
    for name, pool in (("prefill", config.prefill), ("decode", config.decode)):
        if pool.worker.connector == "lmcache":
            check_installed(f"{name}.worker.connector")
        if pool.engine.kv_tiers.lmcache:
            check_installed(f"{name}.engine.kv_tiers.lmcache")
    if config.ray.address:
        with_lmcache(config)


def uses_lmcache(config: BatonConfig) -> bool:
    """Whether any worker wants the server of the `lmcache` section."""
    return any(_wants(pool) for pool in (config.prefill, config.decode))


def with_lmcache(config: BatonConfig) -> BatonConfig:
    """Tells the workers where the server of the `lmcache` section is. ConfigError if nowhere."""
    if uses_lmcache(config) and not config.lmcache.address:
        raise ConfigError(
            "lmcache.address is empty, but only `baton serve` with a private Ray runs an LMCache"
            " server itself: start one on every machine with workers, at one address such as"
            " tcp://127.0.0.1:5555",
            param="lmcache.address",
        )

    def told(pool: PoolConfig) -> PoolConfig:
        if not _wants(pool):
            return pool
        address, worker, tiers = config.lmcache.address, pool.worker, pool.engine.kv_tiers
        if tiers.lmcache == AUTO:
            tiers = dataclasses.replace(tiers, lmcache=address)
            engine = dataclasses.replace(pool.engine, kv_tiers=tiers)
            worker = dataclasses.replace(worker, engine=engine)
        if worker.lmcache == AUTO:
            worker = dataclasses.replace(worker, lmcache=address)
        return dataclasses.replace(pool, worker=worker)

    return dataclasses.replace(config, prefill=told(config.prefill), decode=told(config.decode))


def _wants(pool: PoolConfig) -> bool:
    by_connector = pool.worker.connector == "lmcache" and pool.worker.lmcache == AUTO
    return by_connector or pool.engine.kv_tiers.lmcache == AUTO
