"""Plans, what became of them, and what is learned from both."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from baton.gateway.decisions import Decision, Decisions
from baton.gateway.fleet_audit import KvAudit
from baton.gateway.fleet_config import FleetConfig
from baton.gateway.fleet_figures import model_figures
from baton.gateway.fleet_generation import Generation
from baton.gateway.fleet_sessions import Sessions
from baton.gateway.model_file import load_model_times, save_model_times
from baton.gateway.request_trace import trace_decision
from baton.gateway.seam import Figure
from baton.protos.clock import Clock
from baton.protos.tracing import Tracing
from baton.protos.types import Role
from baton.router.config import RouterConfig
from baton.router.learning import ModelBook
from baton.router.plan import Plan, RouteRequest, plan
from baton.router.prefix_index import PrefixIndex
from baton.router.record import Inputs
from baton.router.scaling_signals import Demand
from baton.router.view import ClusterView, WorkerView

_SAVE_EVERY_S = 60.0


@dataclass(slots=True)
class _Attempt:
    """A submitted plan, until its request has ended or goes on elsewhere."""

    decision: Decision
    submitted_s: float
    first_token_s: float = 0.0


class Planner:
    """Decides by the configured policy, with times learned from requests and reports."""

    def __init__(
        self,
        router: RouterConfig,
        config: FleetConfig,
        clock: Clock,
        rng: random.Random,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._planned_s = 0.0
        self._router = router
        self._config = config
        self._clock = clock
        self._rng = rng
        self.models = ModelBook(load_model_times(config.model_times))
        self.audit = KvAudit(clock)
        self._decisions = Decisions(config.explained_requests, config.decision_log)
        self._attempts: dict[Generation, _Attempt] = {}
        self.sessions = Sessions()
        self._saved_s = clock.now_s()
        self._inputs: Inputs | None = None

    def plan(self, view: ClusterView, index: PrefixIndex, request: RouteRequest) -> Plan:
        """Raises UnavailableError when no decode worker can take the request."""
        self._planned_s = self._clock.now_s()
        # A seed of its own makes every decision one that can be repeated.
        seed = self._rng.getrandbits(64)
        if self._decisions.logging:
            self._inputs = Inputs(
                view=view,
                hits=index.tokens(request.chains),
                kept=index.kept(request.chains),
                request=request,
                config=self._router,
                seed=seed,
            )
        return plan(view, index, request, self._router, random.Random(seed))

    def submitted(self, generation: Generation, chosen: Plan) -> None:
        """The request went where the newest plan says. To be called before anything changes."""
        if self._tracing is not None:
            trace_decision(self._tracing, generation, chosen, self._planned_s)
        self.sessions.served(generation.request.session, chosen.decode.worker_id)
        before = self._attempts.get(generation)
        if before is not None:
            before.decision.outcome = {"finished": False, "went_on": chosen.decode.worker_id}
        decision = self._decisions.add(
            generation.request, self._router.policy, chosen, self._inputs
        )
        self._attempts[generation] = _Attempt(decision, self._clock.now_s())

    def first_token(self, generation: Generation) -> None:
        attempt = self._attempts.get(generation)
        if attempt is not None:
            attempt.first_token_s = self._clock.now_s()

    def ended(self, generation: Generation) -> None:
        """Learns what the request took beside what its workers accounted for."""
        attempt = self._attempts.pop(generation, None)
        if attempt is None:
            return
        ttft_s = max(attempt.first_token_s - attempt.submitted_s, 0.0)
        outcome = _outcome(generation, ttft_s)
        outcome["e2e_s"] = self._clock.now_s() - attempt.submitted_s
        self._decisions.ended(generation, attempt.decision, outcome)
        done = generation.done
        if done is None or generation.num_replays or done.fallback_reason:
            return
        kind = "remote" if done.prefilled_by else "local"
        self.models.answered(kind, ttft_s - done.queue_s - done.prefill_s)

    def explain(self, request_id: str) -> list[dict[str, Any]]:
        """The decisions for one of the last requests, oldest first; none if it is not known."""
        return self._decisions.explain(request_id)

    def figures(self, workers: Sequence[WorkerView]) -> list[Figure]:
        """What was learned, for /metrics."""
        return [*model_figures(self.models, workers), *self.audit.figures(workers)]

    def with_times(self, demand: Demand) -> Demand:
        """With what was learned of the pools, for whoever sizes them."""
        return replace(
            demand,
            prefill=self.models.learned(Role.PREFILL),
            decode=self.models.learned(Role.DECODE),
        )

    def tick(self) -> None:
        """To be called now and then."""
        self._decisions.flush()
        if self._clock.now_s() - self._saved_s >= _SAVE_EVERY_S:
            self._save()

    def close(self) -> None:
        """Keeps what was learned for the next start, if there is a file for it."""
        self._save()
        self._decisions.close()

    def _save(self) -> None:
        self._saved_s = self._clock.now_s()
        if self._config.model_times:
            save_model_times(self._config.model_times, self.models.export())


def _outcome(generation: Generation, ttft_s: float) -> dict[str, Any]:
    done = generation.done
    found: dict[str, Any] = {
        "ttft_s": ttft_s if generation.num_received else None,
        "num_tokens": generation.num_received,
        "num_replays": generation.num_replays,
        "finished": done is not None,
    }
    if done is not None:
        found |= {
            "prefilled_by": done.prefilled_by,
            "fallback_reason": done.fallback_reason,
            "queue_s": done.queue_s,
            "prefill_s": done.prefill_s,
            "transfer_s": done.transfer_s,
            "num_cached_tokens": done.num_cached_tokens,
            "num_pulled_tokens": done.num_pulled_tokens,
        }
    return found
