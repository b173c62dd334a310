"""Requests as they come: checked, numbered, and told of to what they may have to wait for."""

from __future__ import annotations

from collections.abc import Container

from baton.engine.gates import Gates
from baton.engine.request import Request, RequestState
from baton.engine.rules import RequestRules
from baton.protos.clock import Clock
from baton.protos.errors import InvalidRequestError
from baton.protos.types import GenerateRequest


class Arrivals:
    """Makes an engine's requests; each has an order and an epoch of its own, which grow."""

    def __init__(self, rules: RequestRules, gates: Gates, clock: Clock) -> None:
        self._rules = rules
        self._gates = gates
        self._clock = clock
        self._count = 0

    def make(self, request: GenerateRequest, state: RequestState, known: Container[str]) -> Request:
        """Raises for what can never run, as Engine.add does, and for an id that is `known`; then
        nothing is kept of it."""
        self._rules.validate(request)
        if request.request_id in known:
            raise InvalidRequestError(
                f"request_id {request.request_id} is already here", param="request_id"
            )
        self._count += 1
        new = Request(request, arrival=self._count, state=state, now_s=self._clock.now_s())
        new.epoch = self._count
        self._rules.bind(new)
        self._gates.enter(new)
        return new
