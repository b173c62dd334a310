"""Requests that wait in the gateway or are refused there: the real admission rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from baton.protos.errors import OverloadedError, UnavailableError
from baton.router.admission import AdmissionQueue, Ticket
from baton.router.admission_config import AdmissionConfig, TenantLimits
from baton.router.holding import start_wait_s
from baton.simulator.job import Job

if TYPE_CHECKING:
    from baton.simulator.simulation import Simulation

# A gateway plans again when reports come; here it looks this often while somebody waits.
_LOOK_S: Final = 0.02
# Weight of the newest plan in the estimate of seconds per prompt token, as in the gateway.
_NEWEST: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class SimAdmission:
    """The gateway's waiting room. `deadline_s`: a request whose first token cannot come within it
    is refused.
    """

    config: AdmissionConfig = field(default_factory=AdmissionConfig)
    tenants: tuple[TenantLimits, ...] = ()
    deadline_s: float | None = None


class WaitingRoom:
    """Follows `gateway.fleet`: whose turn it is is planned for, and sent when a worker can begin it
    soon; the others wait, and are planned for with a newer view.
    """

    def __init__(self, simulation: Simulation, admission: SimAdmission) -> None:
        self._simulation = simulation
        self._admission = admission
        self._queue = AdmissionQueue(admission.config, admission.tenants)
        self._jobs: dict[int, Job] = {}
        self._tickets: dict[Job, Ticket] = {}
        self._looking = False
        self._service_s_per_token = 0.0

    @property
    def waiting(self) -> list[Job]:
        """In no order."""
        return list(self._jobs.values())

    def enter(self, job: Job) -> None:
        """A request has come: it is sent, waits, or is refused."""
        now = self._simulation.events.now
        request = job.request
        ticket = Ticket(
            tenant=request.tenant or "default",
            num_prompt_tokens=request.num_prompt_tokens,
            max_tokens=self._simulation.config.max_tokens,
            service_s=self._service_s_per_token * request.num_prompt_tokens,
        )
        if self._admission.deadline_s is not None:
            ticket.due_s = request.arrival_s + self._admission.deadline_s
        try:
            self._queue.offer(ticket, now)
        except OverloadedError as error:
            self._simulation.fail(job, error)
            return
        self._tickets[job] = ticket
        self._jobs[id(ticket)] = job
        self._pump()

    def ended(self, job: Job) -> None:
        """Its place is free; requests that were refused at the door are unknown, and ignored."""
        ticket = self._tickets.pop(job, None)
        if ticket is not None:
            self._jobs.pop(id(ticket), None)
            now = self._simulation.events.now
            self._queue.end(ticket, now, num_output_tokens=job.num_emitted)

    def _pump(self) -> None:
        simulation = self._simulation
        for ticket, error in self._queue.expired(simulation.events.now):
            simulation.fail(self._jobs[id(ticket)], error)
        while (head := self._queue.head()) is not None and self._send(head):
            pass
        if self._queue.num_waiting and not self._looking:
            self._looking = True
            simulation.events.at(simulation.events.now + _LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = False
        self._pump()

    def _send(self, ticket: Ticket) -> bool:
        """False where it has to wait, and all others with it."""
        simulation, job = self._simulation, self._jobs[id(ticket)]
        now = simulation.events.now
        view, route = simulation.fleet.view(), simulation.route(job)
        try:
            chosen = simulation.plan(job, view, route)
        except UnavailableError:
            return False
        error = self._queue.too_late(ticket, now, chosen.ttft_s)
        if error is not None:
            simulation.fail(job, error)
            return True
        wait_s = start_wait_s(view, chosen, route)
        if wait_s > self._admission.config.hold_s:
            return False
        self._queue.start(ticket, now, num_cached_tokens=chosen.num_cached_tokens)
        del self._jobs[id(ticket)]
        per_token_s = max(0.0, chosen.ttft_s - wait_s) / ticket.num_prompt_tokens
        self._service_s_per_token += _NEWEST * (per_token_s - self._service_s_per_token)
        simulation.dispatch(job, chosen)
        return True
