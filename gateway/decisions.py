"""The last decisions of a gateway, with what became of them; and a log of all, if one is kept."""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from baton.gateway.fleet_generation import Generation
from baton.protos.types import GenerateRequest
from baton.router.plan import Plan
from baton.router.record import Inputs, inputs_to_json, where

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Decision:
    """One submitted plan. `outcome` is None until its request has ended."""

    plan: Plan
    policy: str
    at_s: float
    # Content id, "" for the base model.
    adapter: str = ""
    outcome: dict[str, Any] | None = None

    def document(self, request_id: str) -> dict[str, Any]:
        """Plain values, candidates from the cheapest on."""
        options = sorted(self.plan.candidates, key=lambda option: option.cost_s)
        return {
            "request_id": request_id,
            "at_s": round(self.at_s, 3),
            "policy": self.policy,
            "adapter": self.adapter,
            **where(self.plan),
            "num_cached_tokens": self.plan.num_cached_tokens,
            "candidates": [option._asdict() for option in options],
            "outcome": self.outcome,
        }


class Decisions:
    """The last `limit` requests' decisions, by request id; `path` names the log, empty: none.

    A log that cannot be written is closed, with an error in the gateway's own log: requests go on.
    """

    def __init__(self, limit: int, path: str) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, list[Decision]] = OrderedDict()
        self._file: TextIO | None = None
        self._path = path
        if path:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                # Open for as long as this gateway runs.
                self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115
            except OSError as error:
                _log.error("decisions cannot be logged to %s: %s", path, error)

    @property
    def logging(self) -> bool:
        return self._file is not None

    def add(
        self, request: GenerateRequest, policy: str, plan: Plan, inputs: Inputs | None
    ) -> Decision:
        """A plan was acted on. A request that goes on elsewhere has several."""
        decision = Decision(plan, policy, time.time(), request.adapter_id)
        self._kept.setdefault(request.request_id, []).append(decision)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        if inputs is not None:
            self._write({"kind": "plan", **inputs_to_json(inputs), "chosen": where(plan)})
        return decision

    def ended(self, generation: Generation, decision: Decision, outcome: dict[str, Any]) -> None:
        """What became of a decision's request: times as they were, beside those predicted."""
        decision.outcome = outcome
        if self._file is not None:
            request_id = generation.request.request_id
            self._write({"kind": "outcome", "request_id": request_id, **outcome})

    def explain(self, request_id: str) -> list[dict[str, Any]]:
        """Every decision for a request, oldest first; for its choices too, which are named after
        it."""
        return [
            decision.document(name)
            for name, decisions in self._kept.items()
            if name == request_id or name.rpartition("-")[0] == request_id
            for decision in decisions
        ]

    def flush(self) -> None:
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            try:
                self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        _log.error("decisions can be logged to %s no more: %s", self._path, error)
        self._file = None
