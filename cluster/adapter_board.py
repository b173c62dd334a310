"""Which adapters the cluster serves: one set, numbered by generation, that all workers and gateways
follow.

An adapter is named by clients and known to workers by the id of its content, so that loading is two
steps of which only the second can be seen: every worker loads the content (prepare), then its name
joins the set (commit). Unloading is the reverse: the name leaves the set, gateways report when the
last request that uses the content is over, and then workers let it go. Nobody is told to go back:
whoever holds what is no longer wanted drops it.

Pure state with an injected clock; the directory's actor holds one.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from baton.cluster.adapter_orders import (
    AdapterOrders,
    AdapterState,
    Change,
    GatewayReport,
    LoadFailure,
    Mark,
    WorkerReport,
)
from baton.protos.adapters import AdapterRef
from baton.protos.clock import Clock, SystemClock
from baton.protos.errors import (
    AdapterNotFoundError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
)

MAX_PENDING = 64
# Outcomes that are remembered for whoever asked for the change.
MAX_CHANGES = 256


@dataclass(slots=True)
class _Proposal:
    number: int
    ref: AdapterRef
    version: int
    deadline_s: float


@dataclass(slots=True)
class _Lease:
    report: WorkerReport | GatewayReport
    expires_s: float


class AdapterBoard:
    """Every change happens in a call of somebody else, and is saved before anybody hears of it.

    save: keeps the state for the next life of the board; a change that it refuses has not happened.
    Until the board is older than a lease it decides nothing: workers that must be asked and
    gateways that still use something may not have reported yet. `num_events` counts orders and
    outcomes of changes.
    """

    def __init__(
        self,
        lease_s: float,
        *,
        state: AdapterState | None = None,
        save: Callable[[AdapterState], None] = lambda state: None,
        clock: Clock | None = None,
    ) -> None:
        self._lease_s = lease_s
        self._state = state or AdapterState()
        self._save = save
        self._clock = clock or SystemClock()
        self._born_s = self._clock.now_s()
        self._mark = Mark(uuid.uuid4().hex, 1)
        self._workers: dict[str, _Lease] = {}
        self._gateways: dict[str, _Lease] = {}
        self._proposals: dict[str, _Proposal] = {}
        self._changes: dict[int, Change] = {}
        self._last_number = 0
        self.num_events = 0
        # The generation with which ids in `draining` had left the set at the latest.
        self._drain_from = {ref.adapter_id: self._state.generation for ref in self._state.draining}

    @property
    def state(self) -> AdapterState:
        return self._state

    @property
    def mark(self) -> Mark:
        """That of the newest orders."""
        return self._mark

    def orders(self) -> AdapterOrders:
        """What is to be done now."""
        state = self._state
        pending = (p.ref for p in self._proposals.values())
        wanted = {ref.adapter_id: ref for ref in (*state.draining, *pending)}
        wanted |= {ref.adapter_id: ref for ref in state.adapters.values()}
        return AdapterOrders(
            mark=self._mark,
            base=state.base,
            generation=state.generation,
            adapters=tuple(state.adapters.values()),
            wanted=tuple(wanted.values()),
        )

    # What operators ask for.

    def begin(self, base: str, refs: tuple[AdapterRef, ...]) -> None:
        """Replaces the set by what a configuration begins with, unless it began with that."""
        if base != self._state.base:
            self._commit(self._state.with_set({ref.name: ref for ref in refs}, base=base))

    def propose(self, ref: AdapterRef, *, force: bool, timeout_s: float) -> int:
        """Asks every worker to load `ref`; `change` says how it went. Not all within `timeout_s`:
        none.

        Raises InvalidRequestError where its name has other content, unless `force`;
        OverloadedError while the name is being loaded or too much else is.
        """
        self.advance()
        known = self._state.adapters.get(ref.name)
        self._check_idle(ref.name)
        if known is not None and known.adapter_id != ref.adapter_id and not force:
            raise InvalidRequestError(
                f"the adapter {ref.name!r} is loaded with other content, from {known.path}: unload "
                "it first, or replace it with `force`",
                param="lora_name",
                code="adapter_exists",
            )
        if len(self._proposals) >= MAX_PENDING:
            raise OverloadedError(f"{MAX_PENDING} adapters are being loaded already: try later")
        change = self._new_change(ref)
        self._touch()
        deadline_s = self._clock.now_s() + timeout_s
        self._proposals[ref.name] = _Proposal(change.number, ref, self._mark.version, deadline_s)
        self.advance()
        return change.number

    def remove(self, name: str) -> int:
        """Takes a name out of the set. Raises AdapterNotFoundError, OverloadedError as `propose`
        does.
        """
        self.advance()
        self._check_idle(name)
        ref = self._state.adapters.get(name)
        if ref is None:
            raise AdapterNotFoundError(
                f"no adapter is called {name[:80]!r}: GET /v1/models lists those that are loaded",
                param="lora_name",
            )
        left = {other: r for other, r in self._state.adapters.items() if other != name}
        self._commit(self._state.with_set(left))
        change = self._new_change(ref, generation=self._state.generation)
        self.advance()
        return change.number

    def change(self, number: int) -> Change:
        """How a change goes. UnavailableError for one that an earlier life of the board began."""
        self.advance()
        change = self._changes.get(number)
        if change is None:
            raise UnavailableError(
                "the directory was replaced while the adapter was being changed: ask for it again"
            )
        return change

    # What workers and gateways report.

    def work(self, report: WorkerReport) -> None:
        """A worker lives, and has done what it says."""
        self._renew(self._workers, report)

    def serve(self, report: GatewayReport) -> None:
        """A gateway lives, and serves what it says."""
        self._renew(self._gateways, report)

    def leave(self, incarnation: str) -> None:
        """A worker or gateway is gone."""
        self._workers.pop(incarnation, None)
        self._gateways.pop(incarnation, None)
        self.advance()

    def failures(self) -> list[LoadFailure]:
        """What workers could not load of what the set has."""
        return [f for report in self._worker_reports() for f in report.failures]

    def advance(self) -> None:
        """Decides what can be decided by now."""
        now_s = self._clock.now_s()
        for leases in (self._workers, self._gateways):
            for incarnation in [i for i, held in leases.items() if held.expires_s <= now_s]:
                del leases[incarnation]
        settled = now_s - self._born_s >= self._lease_s
        for proposal in list(self._proposals.values()):
            self._decide(proposal, settled, now_s)
        if settled:
            self._release_drained()
            self._tell_done()

    def _decide(self, proposal: _Proposal, settled: bool, now_s: float) -> None:
        asked = [r for r in self._worker_reports() if r.ready]
        answered = [r for r in asked if self._has(r.mark, proposal.version)]
        failures = (f for report in answered for f in report.failures)
        failure = next((f for f in failures if f.adapter_id == proposal.ref.adapter_id), None)
        if failure is None and settled and asked and len(answered) == len(asked):
            self._accept(proposal)
            return
        if failure is None and now_s >= proposal.deadline_s:
            silent = [r.worker_id for r in asked if r not in answered]
            failure = _too_late(proposal.ref, silent)
        if failure is not None:
            del self._proposals[proposal.ref.name]
            self._end(proposal.number, failure=failure, done=True)
            self._touch()

    def _accept(self, proposal: _Proposal) -> None:
        ref, known = proposal.ref, self._state.adapters.get(proposal.ref.name)
        if known is None or known.adapter_id != ref.adapter_id:
            self._commit(self._state.with_set({**self._state.adapters, ref.name: ref}))
        del self._proposals[ref.name]
        self._end(proposal.number, generation=self._state.generation)

    def _release_drained(self) -> None:
        """Lets go of what no gateway uses or can come to use."""
        state, reports = self._state, self._gateway_reports()
        left = tuple(
            ref
            for ref in state.draining
            if not all(
                report.generation >= self._drain_from[ref.adapter_id]
                and ref.adapter_id not in report.leftover
                for report in reports
            )
        )
        if len(left) != len(state.draining):
            self._commit(dataclasses.replace(state, draining=left))

    def _tell_done(self) -> None:
        reports = self._gateway_reports()
        for change in list(self._changes.values()):
            wanted = change.generation
            if wanted is None or change.done:
                continue
            if all(report.generation >= wanted for report in reports):
                self._end(change.number, done=True)

    def _commit(self, state: AdapterState) -> None:
        self._save(state)
        self._state = state
        draining = {ref.adapter_id for ref in state.draining}
        self._drain_from = {i: self._drain_from.get(i, state.generation) for i in draining}
        self._touch()

    def _check_idle(self, name: str) -> None:
        if name in self._proposals:
            raise OverloadedError(f"the adapter {name!r} is being loaded: try again when it is")

    def _new_change(self, ref: AdapterRef, generation: int | None = None) -> Change:
        self._last_number += 1
        change = Change(number=self._last_number, ref=ref, generation=generation)
        self._changes[change.number] = change
        while len(self._changes) > MAX_CHANGES:
            del self._changes[next(iter(self._changes))]
        return change

    def _end(self, number: int, **changes: Any) -> None:
        if number in self._changes:
            self._changes[number] = dataclasses.replace(self._changes[number], **changes)
        self.num_events += 1

    def _touch(self) -> None:
        self.num_events += 1
        self._mark = Mark(self._mark.epoch, self._mark.version + 1)

    def _renew(self, leases: dict[str, _Lease], report: WorkerReport | GatewayReport) -> None:
        leases[report.incarnation] = _Lease(report, self._clock.now_s() + self._lease_s)
        self.advance()

    def _has(self, mark: Mark, version: int) -> bool:
        return mark.epoch == self._mark.epoch and mark.version >= version

    def _worker_reports(self) -> list[WorkerReport]:
        return [h.report for h in self._workers.values() if isinstance(h.report, WorkerReport)]

    def _gateway_reports(self) -> list[GatewayReport]:
        return [h.report for h in self._gateways.values() if isinstance(h.report, GatewayReport)]


def _too_late(ref: AdapterRef, silent: list[str]) -> LoadFailure:
    """Nobody has said no, but not everybody yes."""
    if silent:
        why = f"{', '.join(silent)} did not load it in time"
    else:
        why = "there is no worker that could load it"
    return LoadFailure(
        worker_id=silent[0] if silent else "",
        adapter_id=ref.adapter_id,
        code=UnavailableError.default_code,
        message=f"the adapter {ref.name!r} was not loaded anywhere: {why}",
    )
