"""One request, one view, one plan."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from baton.router import policies, rules
from baton.router.config import RouterConfig
from baton.router.decision import Candidate, Plan, RouteRequest
from baton.router.prefix_index import Prefixes
from baton.router.view import ClusterView, WorkerState, WorkerView

__all__ = ["POLICIES", "Candidate", "Plan", "Policy", "RouteRequest", "plan"]

Policy = Callable[[ClusterView, Prefixes, RouteRequest, RouterConfig, random.Random], Plan]

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "cost": policies.cost,
        "always_local": policies.always_local,
        "always_remote": policies.always_remote,
        "threshold": rules.fixed_policy(rules.threshold),
        "isl_bounding": rules.fixed_policy(rules.isl_bounding),
        "isl_or_load": rules.fixed_policy(rules.isl_or_load),
        "splitwise": rules.fixed_policy(rules.splitwise),
        "round_robin": rules.fixed_policy(rules.round_robin),
        "least_loaded": rules.fixed_policy(rules.least_loaded),
        "power_of_two": rules.fixed_policy(rules.power_of_two),
        "prefix_aware": rules.fixed_policy(rules.prefix_aware),
    }
)


def plan(
    view: ClusterView,
    index: Prefixes,
    request: RouteRequest,
    config: RouterConfig,
    rng: random.Random,
) -> Plan:
    """Decides by the configured policy. Same inputs and same `rng` state, same plan.

    Raises UnavailableError when no decode worker can take the request.
    """
    if request.stick_to is not None:
        worker = _find(view, request.stick_to, request)
        if worker is not None:
            only = ClusterView((worker,), ())
            stuck = policies.always_local(only, index, request, config, rng)
            return replace(stuck, reason="stick_to")
    return POLICIES[config.policy](view, index, request, config, rng)


def _find(view: ClusterView, worker_id: str, request: RouteRequest) -> WorkerView | None:
    for worker in view.decode:
        if worker.member.worker_id == worker_id:
            usable = worker.state is WorkerState.UP and not worker.load.draining
            return worker if usable and worker_id not in request.exclude else None
    return None
