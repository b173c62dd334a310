"""One request, one view, one plan."""

from __future__ import annotations

import random
from dataclasses import replace

from baton.router.config import RouterConfig
from baton.router.decision import Candidate, Plan, RouteRequest
from baton.router.policies import POLICIES, usable_decode
from baton.router.prefix_index import PrefixIndex
from baton.router.view import ClusterView

__all__ = ["Candidate", "Plan", "RouteRequest", "plan"]


def plan(
    view: ClusterView,
    index: PrefixIndex,
    request: RouteRequest,
    config: RouterConfig,
    rng: random.Random,
) -> Plan:
    """Decides by the configured policy. Same inputs and same `rng` state, same plan.

    Raises UnavailableError when no decode worker can take the request.
    """
    if request.stick_to is not None:
        for worker in usable_decode(view, request):
            if worker.member.worker_id == request.stick_to:
                only = ClusterView((worker,), ())
                stuck = POLICIES["always_local"](only, index, request, config, rng)
                return replace(stuck, reason="stick_to")
    return POLICIES[config.policy](view, index, request, config, rng)
