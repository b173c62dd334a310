"""Requests through a simulated cluster: planned by the real router, served by twins of engines."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence as Sequence_
from dataclasses import replace
from functools import partial

from baton.protos.errors import BatonError, ContextLengthError, UnavailableError
from baton.protos.types import Role
from baton.router.plan import Plan, RouteRequest, plan
from baton.router.view import ClusterView
from baton.simulator.admission import WaitingRoom
from baton.simulator.config import SimConfig
from baton.simulator.events import Events
from baton.simulator.failures import Failures
from baton.simulator.fleet import SimFleet
from baton.simulator.gaps import GapHistogram
from baton.simulator.handover import Handover
from baton.simulator.job import Job
from baton.simulator.outcome import Outcome
from baton.simulator.request import Trace
from baton.simulator.scaling import Arrivals, Scalers
from baton.simulator.sequence import Sequence
from baton.simulator.worker import SimWorker

# The policy that is told what no router knows: how long each answer will be.
ORACLE = "oracle"


def simulate(trace: Trace, config: SimConfig, *, oracle: bool = False) -> Outcome:
    """Runs the whole trace and waits for its last token. The same inputs give the same outcome.

    `oracle`: the router is told every request's real output length.
    """
    return Simulation(trace, config, oracle=oracle).run()


class Simulation:
    """One run."""

    def __init__(self, trace: Trace, config: SimConfig, *, oracle: bool = False) -> None:
        self._trace = trace
        self.config = config
        self._oracle = oracle
        self._rng = random.Random(config.seed)
        self.events = Events()
        self.gaps = GapHistogram()
        self.fleet = SimFleet(config, trace.block_tokens, self.events, self, self.gaps)
        self.jobs = [Job(request) for request in trace.requests]
        self.handover = Handover(self)
        self._orders = itertools.count()
        self.by_sequence: dict[int, Job] = {}
        # Jobs that no worker can take now.
        self._parked: list[Job] = []
        self._num_left = len(self.jobs)
        # Placed and not ended, in the order of their first placing.
        self.active: dict[Job, None] = {}
        self.arrived = Arrivals()
        self._room = WaitingRoom(self, config.admission) if config.admission is not None else None
        self._failures = Failures(self, config) if config.mtbf_s > 0 else None
        self._scalers = Scalers(self, config) if config.scaling is not None else None

    def run(self) -> Outcome:
        config = self.config
        for role, count in ((Role.PREFILL, config.prefill), (Role.DECODE, config.decode)):
            for _ in range(count):
                self.add_worker(role)
        for job in self.jobs:
            self.events.at(job.request.arrival_s + config.overhead_s, partial(self._arrive, job))
        if self._scalers is not None:
            self._scalers.start()
        while self._num_left and self.events.step():
            pass
        for job in self.jobs:
            if not job.ended:
                self.fail(job, UnavailableError("no worker could ever take it"))
        for worker in self.fleet.workers.values():
            worker.check_integrity()
        return Outcome.of(self._trace, config, self.jobs, self.gaps, self.fleet.gpu_hours())

    def add_worker(self, role: Role, worker_id: str = "") -> SimWorker:
        """A worker that is ready now; requests that waited for one are placed."""
        worker = self.fleet.add(role, self.handover.start, worker_id)
        if self._failures is not None:
            self._failures.watch(worker)
        parked, self._parked = self._parked, []
        for job in parked:
            self.place(job)
        return worker

    @property
    def resizes(self) -> Sequence_[tuple[float, Role, int, str]]:
        """Every change of a pool's wanted size: when, which, to what, and why."""
        return self._scalers.history if self._scalers is not None else ()

    @property
    def num_failures(self) -> int:
        """Workers that died so far."""
        return self._failures.num_failures if self._failures is not None else 0

    @property
    def parked(self) -> Sequence_[Job]:
        """Jobs that no worker can take now, or not soon."""
        return [*self._parked, *(self._room.waiting if self._room is not None else ())]

    # Placing.

    def _arrive(self, job: Job) -> None:
        self.active[job] = None
        request = job.request
        longest = request.num_prompt_tokens + request.num_output_tokens
        if longest > self.config.kv_capacity_tokens:
            self.fail(
                job, ContextLengthError(f"{longest} tokens are more than any worker can hold")
            )
        elif self._room is not None:
            self._room.enter(job)
        else:
            self.place(job)

    def place(self, job: Job) -> None:
        """Plans the job, again where its worker was lost, and sends it there."""
        try:
            chosen = self.plan(job, self.fleet.view(), self.route(job))
        except UnavailableError:
            self._parked.append(job)
            return
        self.dispatch(job, chosen)

    def route(self, job: Job) -> RouteRequest:
        """What routers are told of the job."""
        request = job.request
        return RouteRequest(
            request_id=str(request.index),
            num_prompt_tokens=job.num_known,
            block_hashes=request.block_hashes,
            block_size=self._trace.block_tokens,
            max_tokens=job.num_left if self._oracle else self.config.max_tokens,
            sequence=request.index,
        )

    def plan(self, job: Job, view: ClusterView, route: RouteRequest) -> Plan:
        """The real router's decision. Raises UnavailableError."""
        router = self.config.router
        if self._oracle:
            router = replace(router, policy="cost", expected_output_tokens=job.num_left)
        return plan(view, self.fleet.index, route, router, self._rng)

    def dispatch(self, job: Job, chosen: Plan) -> None:
        """Sends the job where the plan says."""
        if not job.attempt:
            self.arrived.planned(job, chosen)
        job.attempt += 1
        job.decode = self.fleet.workers[chosen.decode.worker_id]
        job.targets = list(chosen.prefill)
        lender = chosen.pull_from
        job.lender = self.fleet.workers.get(lender.worker_id) if lender else None
        job.num_new = chosen.num_new_tokens
        job.local = not job.targets
        job.reason = chosen.reason
        if job.attempt == 1:
            job.predicted_ttft_s = chosen.ttft_s
        workers = [chosen.decode, *chosen.prefill[:1]]
        self.fleet.index.promise(
            job, [worker.worker_id for worker in workers], job.request.block_hashes
        )
        job.decode.num_elsewhere += 1
        job.num_unplaced = max(1, job.num_known - chosen.num_cached_tokens)
        job.decode.unplaced_tokens += job.num_unplaced
        self.next_attempt(job)

    def next_attempt(self, job: Job) -> None:
        """Tries the next prefill worker that is left, or prefills at the decode worker."""
        decode = job.decode
        assert decode is not None
        job.prefill, job.held, job.sequence = None, None, None
        while job.targets:
            target = job.targets.pop(0)
            worker = self.fleet.workers.get(target.worker_id)
            if worker is not None and worker.member == target:
                job.prefill = worker
                self.fleet.desks[target.worker_id].announce(job)
                asked_s = self.events.now + self.config.times.handshake_s
                self.events.at(asked_s, partial(self.handover.ask, job, worker, job.attempt))
                return
        decode.num_elsewhere -= 1
        self.placed(job)
        job.sequence = self.sequence(job)
        decode.add(job.sequence)

    def placed(self, job: Job) -> None:
        """It has blocks at its decode worker, or waits in its engine."""
        assert job.decode is not None
        job.decode.unplaced_tokens -= job.num_unplaced
        job.num_unplaced = 0

    def sequence(self, job: Job, *, hold: bool = False) -> Sequence:
        """What an engine gets of the job. hold: for another worker."""
        # Engines order by when they were given a request, not by when it came to the cluster.
        order = (0, next(self._orders))
        sequence = Sequence(order, job.num_known, job.num_left, job.request.block_hashes, hold=hold)
        if job.num_emitted and not hold:
            sequence.last_token_s = job.last_s
        self.by_sequence[id(sequence)] = job
        return sequence

    # What engines and desks tell.

    def room(self, worker: SimWorker) -> None:
        """Memory has come free."""
        self.handover.room(worker)

    def computed(self, worker: SimWorker, sequence: Sequence) -> None:
        """A chunk of a prompt for another worker is done."""
        self.handover.computed(worker, sequence)

    def first_token(self, worker: SimWorker, sequence: Sequence) -> None:
        """It was sampled."""
        if sequence.hold:
            self.handover.sampled(worker, sequence)
        else:
            self.tell_first(self.by_sequence[id(sequence)], sequence)

    def tell_first(self, job: Job, sequence: Sequence) -> None:
        """The job's first token from this worker goes to the client."""
        if job.num_emitted:
            self.gaps.add(self.events.now - job.last_s)
        else:
            job.first_s = self.events.now
            self.fleet.index.settle(job)
            job.num_cached = sequence.num_cached
        job.last_s = self.events.now
        job.num_emitted += 1

    def finished(self, worker: SimWorker, sequence: Sequence) -> None:
        """Its last token was sampled."""
        self.finish(self.by_sequence[id(sequence)], sequence)

    # Ends.

    def finish(self, job: Job, sequence: Sequence) -> None:
        """All its tokens are there."""
        self.by_sequence.pop(id(sequence), None)
        job.num_emitted = job.request.num_output_tokens
        job.finish_s = job.last_s = self.events.now
        self.arrived.finished(job)
        self._ended(job)

    def fail(self, job: Job, error: BatonError) -> None:
        """It is refused."""
        job.error = error.message
        self._ended(job)

    def _ended(self, job: Job) -> None:
        self.active.pop(job, None)
        self.fleet.index.settle(job)
        if self._room is not None:
            self._room.ended(job)
        self._num_left -= 1
