"""Workers that die and come back, and what becomes of the requests that they had."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

from baton.simulator.config import SimConfig
from baton.simulator.job import Job
from baton.simulator.worker import SimWorker

if TYPE_CHECKING:
    from baton.simulator.simulation import Simulation


class Failures:
    """Every worker fails after a random time (exponential, mean `mtbf_s`) and is back, empty, after
    `startup_s`. Follows the gateway's fleet: a lost decode worker's requests are replayed elsewhere
    with the tokens that were sent already; a lost prefill worker's prompts go to the next one.
    """

    def __init__(self, simulation: Simulation, config: SimConfig) -> None:
        self._simulation = simulation
        self._config = config
        self._rng = random.Random(f"failures/{config.seed}")
        self.num_failures = 0

    def watch(self, worker: SimWorker) -> None:
        """A worker has started."""
        events = self._simulation.events
        due_s = events.now + self._rng.expovariate(1 / self._config.mtbf_s)
        events.at(due_s, partial(self._fail, worker))

    def _fail(self, worker: SimWorker) -> None:
        simulation, worker_id = self._simulation, worker.member.worker_id
        if simulation.fleet.workers.get(worker_id) is not worker:
            return
        self.num_failures += 1
        worker.kill()
        simulation.fleet.remove(worker_id, paid=True)
        role = worker.member.role

        def restart() -> None:
            simulation.add_worker(role, worker_id)

        simulation.events.at(simulation.events.now + self._config.startup_s, restart)
        for job in list(simulation.active):
            if job.decode is worker:
                self._replay(job)
            elif job.prefill is worker:
                self._next_prefill(job)

    def _replay(self, job: Job) -> None:
        simulation, sequence, prefill = self._simulation, job.sequence, job.prefill
        if sequence is not None:
            num_emitted = job.request.num_output_tokens - sequence.remaining
            if num_emitted > job.num_emitted:
                job.num_emitted, job.last_s = num_emitted, sequence.last_token_s
        job.attempt += 1
        simulation.handover.give_up(job)
        job.decode = job.prefill = job.sequence = None
        if prefill is not None and not prefill.dead:
            simulation.fleet.desks[prefill.member.worker_id].done(job)
        simulation.place(job)

    def _next_prefill(self, job: Job) -> None:
        if job.sequence is not None and job.decode is not None:
            job.decode.release(job.sequence)
        job.attempt += 1
        self._simulation.next_attempt(job)
