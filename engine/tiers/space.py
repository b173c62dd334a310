"""One rank's host memory for KV blocks, and the tiers below it."""

from __future__ import annotations

from dataclasses import replace

from baton.engine.batch import BlockStore
from baton.engine.config import EngineConfig
from baton.engine.tiers.copier import host_memory
from baton.kvtransfer.tiers.factory import make_tiers
from baton.kvtransfer.tiers.tier import Tier, TierSpace
from baton.protos.errors import ConfigError


def open_space(
    config: EngineConfig, store: BlockStore, model_digest: str
) -> tuple[TierSpace, list[Tier]]:
    """An equal share for each rank of what the worker is given.

    Raises ConfigError, with nothing left open.
    """
    size, block_bytes = config.tensor_parallel_size, store.layout.block_bytes
    wanted = config.kv_tiers
    num_slots = int(wanted.cpu_gib * (1 << 30)) // (block_bytes * size)
    if not num_slots:
        raise ConfigError(
            f"kv_tiers.cpu_gib is {wanted.cpu_gib:g}, less than a KV block of"
            f" {block_bytes * size} bytes",
            param="kv_tiers.cpu_gib",
        )
    memory = host_memory(num_slots, block_bytes, store.tensor.device)
    space = TierSpace(memory=memory, layout=store.layout, model_digest=model_digest)
    try:
        return space, make_tiers(replace(wanted, disk_gib=wanted.disk_gib / size), space)
    except ConfigError as error:
        raise ConfigError(f"kv_tiers.{error.message}", param=f"kv_tiers.{error.param}") from error
