"""Plans, what became of them, and what is learned from both."""

from __future__ import annotations

import random
from dataclasses import dataclass

from baton.gateway.fleet_config import FleetConfig
from baton.gateway.fleet_generation import Generation
from baton.gateway.model_file import load_model_times, save_model_times
from baton.protos.clock import Clock
from baton.router.config import RouterConfig
from baton.router.learning import ModelBook
from baton.router.plan import Plan, RouteRequest, plan
from baton.router.prefix_index import PrefixIndex
from baton.router.view import ClusterView

_SAVE_EVERY_S = 60.0


@dataclass(slots=True)
class _Attempt:
    """A submitted plan, until its request has ended or goes on elsewhere."""

    plan: Plan
    submitted_s: float
    first_token_s: float = 0.0


class Planner:
    """Decides by the configured policy, with times learned from requests and reports."""

    def __init__(
        self, router: RouterConfig, config: FleetConfig, clock: Clock, rng: random.Random
    ) -> None:
        self._router = router
        self._config = config
        self._clock = clock
        self._rng = rng
        self.models = ModelBook(load_model_times(config.model_times))
        self._attempts: dict[Generation, _Attempt] = {}
        self._saved_s = clock.now_s()

    def plan(self, view: ClusterView, index: PrefixIndex, request: RouteRequest) -> Plan:
        """Raises UnavailableError when no decode worker can take the request."""
        return plan(view, index, request, self._router, self._rng)

    def submitted(self, generation: Generation, chosen: Plan) -> None:
        """The request went where the newest plan says."""
        self._attempts[generation] = _Attempt(chosen, self._clock.now_s())

    def first_token(self, generation: Generation) -> None:
        attempt = self._attempts.get(generation)
        if attempt is not None:
            attempt.first_token_s = self._clock.now_s()

    def ended(self, generation: Generation) -> None:
        """Learns what the request took beside what its workers accounted for."""
        attempt = self._attempts.pop(generation, None)
        done = generation.done
        if attempt is None or done is None or generation.num_replays or done.fallback_reason:
            return
        accounted_s = done.queue_s + done.prefill_s
        kind = "remote" if done.prefilled_by else "local"
        self.models.answered(kind, attempt.first_token_s - attempt.submitted_s - accounted_s)

    def tick(self) -> None:
        """To be called now and then."""
        if self._clock.now_s() - self._saved_s >= _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Keeps what was learned for the next start, if there is a file for it."""
        self._saved_s = self._clock.now_s()
        if self._config.model_times:
            save_model_times(self._config.model_times, self.models.export())
