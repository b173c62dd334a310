"""The other ranks of a tensor-parallel worker, as actors of its placement group."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import get_current_placement_group, get_node_ip_address
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from baton.engine.parallel.follower import follow
from baton.engine.parallel.hosts import GOODBYE_S, RankHandle
from baton.engine.parallel.links import RankSpec
from baton.protos.errors import ConfigError
from baton.protos.logs import LogsConfig, start_logging


class RankActor:
    """One rank. It ends with rank 0: its owner, and the other end of its connections."""

    def __init__(self, logs: LogsConfig, instance: str) -> None:
        start_logging(logs, "baton-rank", instance)

    def follow(self, spec: RankSpec, first_node: str) -> None:
        """Runs the rank; returns when rank 0, on the node of that address, is done with it."""
        node = str(get_node_ip_address())
        follow(spec if node == first_node else replace(spec, own_host=node))


class RayRanks:
    """A RankHost: rank r gets bundle r of the placement group that this replica is in.

    Ray shows each actor the GPU of its bundle alone, so every rank uses its first one.
    """

    def __init__(self, address: str, logs: LogsConfig) -> None:
        """`address`: of this node. Raises ConfigError outside a placement group."""
        self.address = address
        self._logs = logs
        self._group: Any = get_current_placement_group()
        if self._group is None:
            raise ConfigError("a worker with several ranks needs a placement group of its own")

    def device(self, rank: int, device: str) -> str:
        return device

    def start(self, spec: RankSpec) -> RankHandle:
        bundle = self._group.bundle_specs[spec.rank]
        placed = PlacementGroupSchedulingStrategy(
            placement_group=self._group, placement_group_bundle_index=spec.rank
        )
        actor = ray.remote(RankActor).options(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            scheduling_strategy=placed,
        )
        return _RankHandle(actor.remote(self._logs, f"rank {spec.rank}"), spec)


class _RankHandle:
    def __init__(self, actor: Any, spec: RankSpec) -> None:
        self._actor = actor
        self._done = actor.follow.remote(spec, str(get_node_ip_address()))

    def ended(self) -> str | None:
        ready, _ = ray.wait([self._done], timeout=0)
        if not ready:
            return None
        try:
            ray.get(self._done)
        except RayError as error:
            return str(error).strip().splitlines()[-1]
        return "its actor returned"

    def stop(self) -> None:
        ray.wait([self._done], timeout=GOODBYE_S)
        ray.kill(self._actor)
