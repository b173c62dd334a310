"""What gateways, scaling policies and operators tell each other about pool sizes.

Pure state with an injected clock; the directory's actor holds one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from baton.cluster.config import BatonConfig, PoolConfig
from baton.cluster.schema import Document, build, read_fields
from baton.protos.clock import Clock, SystemClock
from baton.protos.types import Role
from baton.router.scaling_config import ScalingConfig
from baton.router.scaling_signals import Demand, ScalingDecision

MAX_DECISIONS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolScaling:
    """What of a pool can be changed while it runs."""

    min_replicas: int
    max_replicas: int
    scaling: ScalingConfig = field(default_factory=ScalingConfig)

    @classmethod
    def of(cls, pool: PoolConfig) -> PoolScaling:
        return cls(
            min_replicas=pool.min_replicas, max_replicas=pool.max_workers, scaling=pool.scaling
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for Serve's policy arguments."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PoolScaling:
        """The inverse. Raises ConfigError."""
        document = Document(values=dict(values))
        return build(cls, read_fields(cls, values, document, ()), document, ())


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedScaling:
    """Settings that replace those that were deployed, as long as `base` names the latter."""

    base: str
    pools: dict[Role, PoolScaling]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingInputs:
    """What a policy cannot learn from its replicas. `demand` None: no gateway has reported."""

    demand: Demand | None = None
    applied: AppliedScaling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingStatus:
    """The newest decision of each pool, and the last that changed something or would have."""

    latest: tuple[ScalingDecision, ...]
    changes: tuple[ScalingDecision, ...]
    applied: AppliedScaling | None


class ScalingBoard:
    """Demands by gateway, each believed for `lease_s`; applied settings; decisions."""

    def __init__(self, lease_s: float, clock: Clock | None = None) -> None:
        self._lease_s = lease_s
        self._clock = clock or SystemClock()
        self._demands: dict[str, tuple[float, Demand]] = {}
        self._latest: dict[Role, ScalingDecision] = {}
        self._changes: deque[ScalingDecision] = deque(maxlen=MAX_DECISIONS)
        self.applied: AppliedScaling | None = None

    def report_demand(self, gateway_id: str, demand: Demand) -> None:
        self._demands[gateway_id] = (self._clock.now_s() + self._lease_s, demand)

    def report_decision(self, decision: ScalingDecision) -> None:
        before = self._latest.get(decision.role)
        self._latest[decision.role] = decision
        changed = decision.target != decision.num_before
        if changed and (before is None or before.target != decision.target):
            self._changes.append(decision)

    def inputs(self) -> ScalingInputs:
        now_s = self._clock.now_s()
        self._demands = {k: v for k, v in self._demands.items() if v[0] > now_s}
        demands = [demand for _, demand in self._demands.values()]
        return ScalingInputs(
            demand=Demand.total(demands) if demands else None, applied=self.applied
        )

    def targets(self) -> dict[str, int]:
        """The replicas that are asked for now, by pool; of pools that were decided about."""
        return {role.value: decision.applied for role, decision in self._latest.items()}

    def status(self) -> ScalingStatus:
        return ScalingStatus(
            latest=tuple(self._latest.values()),
            changes=tuple(self._changes),
            applied=self.applied,
        )


def deployed_scaling(config: BatonConfig) -> AppliedScaling:
    """What a configuration says of its pools, under the name that applied settings refer to."""
    pools = {pool.role: PoolScaling.of(pool) for pool in (config.prefill, config.decode)}
    text = json.dumps({role.value: p.to_json() for role, p in pools.items()}, sort_keys=True)
    return AppliedScaling(base=hashlib.sha256(text.encode()).hexdigest()[:16], pools=pools)
