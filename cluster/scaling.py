"""Ray Serve's autoscaling, by our own rules: the adapter between Serve's policy interface and
`router/scaling.py`.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from baton.cluster.config import DirectoryConfig
from baton.cluster.scaling_board import AppliedScaling, PoolScaling, ScalingInputs
from baton.cluster.scaling_feed import ScalingFeed
from baton.protos.logs import LogsConfig, fields, start_logging
from baton.protos.types import Role, WorkerLoad
from baton.router.scaling import PoolScaler
from baton.router.scaling_signals import PoolState, ReplicaSignals, ScalingDecision

log = logging.getLogger(__name__)
# Reports older than this are not believed. Replicas report every second.
STALE_S = 10.0
_GAUGES = (
    "num_running",
    "num_waiting",
    "queued_prefill_tokens",
    "kv_tokens",
    "kv_use",
    "max_running",
    "kv_capacity_tokens",
    "prefill_tokens_per_s",
    "decode_step_s",
)


class Feed(Protocol):
    """What a policy hears and tells beside Serve."""

    def inputs(self) -> ScalingInputs: ...
    def tell(self, decision: ScalingDecision) -> None: ...


class PoolPolicy:
    """One pool's policy in Serve's controller, which calls it several times a second.

    Bounds, cool-downs and steps are the scaler's: Serve is configured to do at once what is said.
    Settings that `baton config apply` left in the directory replace those given here, unless these
    were deployed later. A decision that fails changes nothing, and is logged: one pool's trouble
    must not stop Serve's loop for the others.
    """

    def __init__(
        self,
        application: str,
        role: str,
        base: str,
        pool: Mapping[str, Any],
        directory: Mapping[str, Any],
        logs: Mapping[str, Any],
        feed: Feed | None = None,
    ) -> None:
        start_logging(LogsConfig(**logs), "baton-scaling", application)
        self._role = Role(role)
        self._base = base
        self._deployed = PoolScaling.from_json(pool)
        self._settings = self._deployed
        self._scaler = PoolScaler(self._settings.scaling)
        self._feed = feed or ScalingFeed(application, DirectoryConfig(**directory))
        self._next_s = 0.0
        self._said = ""

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Serve's signature: the number of replicas, and state that Serve keeps (none)."""
        current = context.target_num_replicas
        now_s = context.current_time or time.time()
        if now_s < self._next_s:
            return current, {}
        try:
            return self._decide(context, now_s).applied, {}
        except Exception:
            log.exception("no decision for the %s pool: it stays at %d", self._role.value, current)
            return current, {}

    def _decide(self, context: Any, now_s: float) -> ScalingDecision:
        inputs = self._feed.inputs()
        self._use(inputs.applied)
        self._next_s = now_s + self._settings.scaling.interval_s
        state = PoolState(
            role=self._role,
            now_s=now_s,
            num_target=context.target_num_replicas,
            num_running=context.current_num_replicas,
            min_replicas=self._settings.min_replicas,
            max_replicas=self._settings.max_replicas,
            replicas=tuple(replica_signals(context.raw_metrics or {}, now_s)),
            demand=inputs.demand,
        )
        decision = self._scaler.decide(state)
        self._feed.tell(decision)
        if decision.target != decision.num_before and decision.line() != self._said:
            self._said = decision.line()
            log.info("%s", self._said, extra=fields(pool=self._role.value))
        return decision

    def _use(self, applied: AppliedScaling | None) -> None:
        wanted = self._deployed
        if applied is not None and applied.base == self._base:
            wanted = applied.pools.get(self._role, self._deployed)
        if wanted != self._settings:
            log.info("the %s pool has new scaling settings: %s", self._role.value, wanted)
            self._settings = wanted
            self._scaler.reconfigure(wanted.scaling)


def replica_signals(
    metrics: Mapping[str, Mapping[Any, Sequence[Any]]], now_s: float
) -> list[ReplicaSignals]:
    """Serve's time series, by metric and replica, as one report for each replica that has a recent
    one. `busy` is averaged over what Serve keeps, the others are the newest values.
    """
    found = []
    for replica_id, series in metrics.get("busy", {}).items():
        if not series or now_s - series[-1].timestamp > STALE_S:
            continue
        newest = {
            name: float(metrics[name][replica_id][-1].value)
            for name in _GAUGES
            if metrics.get(name, {}).get(replica_id)
        }
        found.append(
            ReplicaSignals(
                replica_id=str(replica_id),
                age_s=max(0.0, now_s - series[-1].timestamp),
                busy=statistics.fmean(point.value for point in series),
                **newest,
            )
        )
    return found


def replica_stats(load: WorkerLoad, *, max_running: int, block_size: int) -> dict[str, float]:
    """One replica's figures for its policy, as `record_autoscaling_stats` gives them to Serve."""
    used = load.total_blocks - load.free_blocks
    has_work = load.num_running or load.num_waiting or load.queued_prefill_tokens
    return {
        "busy": float(bool(has_work)),
        "num_running": float(load.num_running),
        "num_waiting": float(load.num_waiting),
        "queued_prefill_tokens": float(load.queued_prefill_tokens),
        "kv_tokens": float(load.running_kv_tokens),
        "kv_use": used / load.total_blocks if load.total_blocks else 0.0,
        "max_running": float(max_running),
        "kv_capacity_tokens": float(load.total_blocks * block_size),
        "prefill_tokens_per_s": load.prefill_tokens_per_s,
        "decode_step_s": load.decode_step_s,
    }
