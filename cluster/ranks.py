"""What a pool of tensor-parallel workers needs, checked before anything is started."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from baton.engine.config import EngineConfig
from baton.protos.errors import ConfigError


def check_hosts(num_hosts: int, num_ranks: int) -> None:
    """Raises ConfigError unless ranks can be shared out evenly."""
    if num_hosts < 1 or num_ranks % num_hosts:
        raise ConfigError(
            f"num_hosts is {num_hosts}, but must divide engine.tensor_parallel_size ({num_ranks}): "
            "each host has as many of the ranks",
            param="num_hosts",
        )


def check_rank_resources(num_ranks: int, num_cpus: float, num_gpus: float | None) -> None:
    """Raises ConfigError unless each of several ranks can have a place of its own."""
    if num_ranks == 1:
        return
    if num_gpus is not None and num_gpus not in (0, 1):
        raise ConfigError(
            f"num_gpus is {num_gpus:g}, but each of {num_ranks} tensor-parallel ranks takes 1 GPU, "
            "or 0 on CPUs",
            param="num_gpus",
        )
    if not num_cpus and not num_gpus:
        raise ConfigError(
            f"num_cpus is 0, but each of {num_ranks} tensor-parallel ranks needs a place: set "
            "num_cpus to at least 1, or num_gpus to 1",
            param="num_cpus",
        )


def check_resources(name: str, resources: Mapping[str, float]) -> None:
    """Raises ConfigError unless these can be custom resources of Ray."""
    for resource, amount in resources.items():
        if resource in ("CPU", "GPU", "memory", "object_store_memory") or not amount > 0:
            raise ConfigError(
                f"{name} has {resource}: {amount:g}, but holds custom Ray resources with amounts "
                "above 0; CPUs and GPUs are num_cpus and num_gpus",
                param=name,
            )


def check_model_ranks(engine: EngineConfig) -> None:
    """Raises ConfigError unless the model can be split over `tensor_parallel_size` ranks."""
    if engine.tensor_parallel_size == 1 or importlib.util.find_spec("torch") is None:
        # A node without torch, such as a head that runs the gateways' image, cannot read a model's
        # shape; the workers check it when they load it.
        return
    # Imported here: reading a model's shape loads torch, which this process does without.
    from baton.engine.model_info import read_model_spec
    from baton.engine.parallel.shards import check_shardable

    check_shardable(read_model_spec(engine.model_dir), engine.tensor_parallel_size)
