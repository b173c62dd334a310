"""What an operator may ask of a running cluster through any of its gateways."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from baton.cluster.commands.config import as_document
from baton.cluster.config import BatonConfig, PoolConfig
from baton.cluster.directory_actor import RayDirectoryClient
from baton.cluster.membership import DirectoryReader
from baton.cluster.profiling import find_worker, profile_worker
from baton.cluster.scaling_board import AppliedScaling, PoolScaling, deployed_scaling
from baton.cluster.schema import Document, build, read_fields, unknown_key
from baton.gateway.seam import ProfileTrace
from baton.protos.errors import ConfigError, InvalidRequestError
from baton.protos.types import Role
from baton.router.scaling_signals import ScalingDecision


class ScalingControl:
    """`gateway.seam.ClusterControl` over the directory. Belongs to the gateway's event loop."""

    def __init__(self, config: BatonConfig, directory: DirectoryReader) -> None:
        self._config = config
        self._directory = directory
        self._deployed = deployed_scaling(config)
        self._client = RayDirectoryClient(config.name, config.directory)

    async def config(self) -> dict[str, Any]:
        """As `baton config show` would print it, with what was applied since."""
        values = as_document(self._config)
        pools = _in_force(self._deployed, (await self._client.scaling_status()).applied)
        for role, pool in pools.items():
            values[role.value] |= pool.to_json()
        return values

    @property
    def targets(self) -> Mapping[str, int]:
        """The replicas that autoscaling asks for, by pool, as last known."""
        return self._directory.targets

    async def scaling(self) -> dict[str, Any]:
        """Settings in force, each pool's newest decision, and the last changes."""
        status = await self._client.scaling_status()
        pools = _in_force(self._deployed, status.applied)
        return {
            "pools": {role.value: pool.to_json() for role, pool in pools.items()},
            "latest": [_decision(d) for d in status.latest],
            "changes": [_decision(d) for d in status.changes],
        }

    async def apply_scaling(self, pools: Mapping[str, Any]) -> dict[str, Any]:
        """Replaces the settings of the pools that are named; the others stay as they are."""
        applied = (await self._client.scaling_status()).applied
        before = _in_force(self._deployed, applied)
        after = dict(before)
        document = Document(values=dict(pools))
        for name, values in pools.items():
            if name not in ("prefill", "decode"):
                raise unknown_key(document, (name,), ["prefill", "decode"])
            base = before[Role(name)].to_json()
            fields = read_fields(PoolScaling, {**base, **values}, document, (name,))
            after[Role(name)] = build(PoolScaling, fields, document, (name,))
        try:
            check_scaling(self._config, after)
        except ConfigError as error:
            raise InvalidRequestError(error.message, param=error.param) from error
        changed = [
            f"{role.value}.{line}"
            for role, pool in after.items()
            for line in differences(before[role].to_json(), pool.to_json())
        ]
        if changed:
            await self._client.apply_scaling(AppliedScaling(base=self._deployed.base, pools=after))
        return {"changed": changed}

    async def profile(self, worker: str, *, seconds: float, steps: int) -> ProfileTrace:
        """A trace of a worker's next steps. Raises NotFoundError, and what the worker says."""
        member = find_worker((await self._client.listing()).workers, worker)
        return await profile_worker(member, self._config.secret, seconds=seconds, steps=steps)


def check_scaling(config: BatonConfig, pools: Mapping[Role, PoolScaling]) -> None:
    """Raises ConfigError for settings that need more than a running cluster can give."""
    for pool in (config.prefill, config.decode):
        _check_pool(config, pool, pools[pool.role])
    if not config.ray.address:
        wanted = _logical_cpus(config, pools)
        started = _logical_cpus(config, deployed_scaling(config).pools)
        if wanted > started:
            raise ConfigError(
                f"max_replicas need {wanted} CPUs, but the private Ray was started for {started}: "
                "restart baton serve to go beyond",
                param="max_replicas",
            )


def _check_pool(config: BatonConfig, pool: PoolConfig, wanted: PoolScaling) -> None:
    name = pool.role.value
    if pool.max_workers == 0 and wanted.max_replicas > 0:
        raise ConfigError(
            f"{name}.max_replicas is {wanted.max_replicas}, but the cluster was started without "
            f"that pool: restart baton serve to have one",
            param=f"{name}.max_replicas",
        )
    # The configuration's own checks: bounds in order, none below what the role needs.
    dataclasses.replace(pool, min_replicas=wanted.min_replicas, max_replicas=wanted.max_replicas)
    if wanted.min_replicas == 0 and pool.role is Role.DECODE and not config.fleet.wake_wait_s:
        raise ConfigError(
            "decode.min_replicas is 0, but gateways were started with fleet.wake_wait_s 0, so no "
            "request would wait for the pool to come back: restart baton serve with this file",
            param="decode.min_replicas",
        )


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Each value that differs, as `key: before -> after`."""
    found: list[str] = []
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old} -> {new}")
    return sorted(found)


def _in_force(deployed: AppliedScaling, applied: AppliedScaling | None) -> dict[Role, PoolScaling]:
    return dict((applied if applied and applied.base == deployed.base else deployed).pools)


def _logical_cpus(config: BatonConfig, pools: Mapping[Role, PoolScaling]) -> int:
    both = (config.prefill, config.decode)
    return math.ceil(sum(pools[p.role].max_replicas * p.num_cpus for p in both))


def _decision(decision: ScalingDecision) -> dict[str, Any]:
    return dataclasses.asdict(decision) | {"line": decision.line()}
