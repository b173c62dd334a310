"""Pools that follow their work: the real scaling rules on what the simulation would report."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from baton.protos.types import Role
from baton.router.plan import Plan
from baton.router.scaling import PoolScaler
from baton.router.scaling_signals import Demand, PoolState, ReplicaSignals
from baton.simulator.config import SimConfig, SimScaling
from baton.simulator.job import Job
from baton.simulator.worker import SimWorker

if TYPE_CHECKING:
    from baton.simulator.simulation import Simulation

# Weight of the newest answer in the mean length that gateways expect of the next ones.
_NEWEST: Final = 0.02
_PRIOR_OUTPUT_TOKENS: Final = 128.0


class Arrivals:
    """What gateways count of the requests that they planned, since they last told."""

    def __init__(self) -> None:
        self._num_requests = 0
        self._num_tokens = 0
        self._num_squares = 0
        self._mean_output = _PRIOR_OUTPUT_TOKENS

    def planned(self, job: Job, chosen: Plan) -> None:
        num_new = chosen.num_new_tokens
        self._num_requests += 1
        self._num_tokens += num_new
        self._num_squares += num_new * num_new

    def finished(self, job: Job) -> None:
        self._mean_output += _NEWEST * (job.request.num_output_tokens - self._mean_output)

    def tell(self, interval_s: float, parked: Sequence[Job], config: SimConfig) -> Demand:
        """The rates since the last call."""
        rate = self._num_requests / interval_s
        demand = Demand(
            requests_per_s=rate,
            prompt_tokens_per_s=self._num_tokens / interval_s,
            prompt_squares_per_s=self._num_squares / interval_s,
            output_tokens_per_s=rate * self._mean_output,
            waiting_requests=len(parked),
            waiting_tokens=sum(job.num_known for job in parked),
            prefill=config.times.prefill_pool,
            decode=config.times.decode_pool,
        )
        self._num_requests = self._num_tokens = self._num_squares = 0
        return demand


@dataclass(slots=True)
class _Pool:
    role: Role
    scaler: PoolScaler
    num_target: int
    # When workers that were asked for will be ready, soonest first.
    starting: list[float]


class Scalers:
    """Both pools' scalers, asked every `interval_s`. A worker costs from when it is asked for; one
    that is no longer wanted takes nothing new and leaves when it is empty.
    """

    def __init__(self, simulation: Simulation, config: SimConfig) -> None:
        assert config.scaling is not None
        self._simulation = simulation
        self._config = config
        self._scaling: SimScaling = config.scaling
        self._pools = [
            _Pool(Role.PREFILL, PoolScaler(config.scaling.config), config.prefill, []),
            _Pool(Role.DECODE, PoolScaler(config.scaling.config), config.decode, []),
        ]
        self._busy_s: dict[str, float] = {}
        self.history: list[tuple[float, Role, int, str]] = []

    def start(self) -> None:
        """Begins to ask."""
        interval_s = self._scaling.config.interval_s
        self._simulation.events.at(self._simulation.events.now + interval_s, self._tick)

    def _tick(self) -> None:
        simulation = self._simulation
        interval_s = self._scaling.config.interval_s
        demand = simulation.arrived.tell(interval_s, simulation.parked, self._config)
        for pool in self._pools:
            decision = pool.scaler.decide(self._state(pool, demand, interval_s))
            if decision.applied != pool.num_target:
                self.history.append(
                    (simulation.events.now, pool.role, decision.applied, decision.reason)
                )
                self._resize(pool, decision.applied)
        for worker in list(simulation.fleet.workers.values()):
            self._remove_if_drained(worker)
        self.start()

    def _state(self, pool: _Pool, demand: Demand, interval_s: float) -> PoolState:
        workers = [w for w in self._simulation.fleet.pool(pool.role) if not w.draining]
        low, high = self._scaling.bounds(pool.role)
        return PoolState(
            role=pool.role,
            now_s=self._simulation.events.now,
            num_target=pool.num_target,
            num_running=len(workers),
            min_replicas=low,
            max_replicas=high,
            replicas=tuple(self._signals(worker, interval_s) for worker in workers),
            demand=demand,
        )

    def _signals(self, worker: SimWorker, interval_s: float) -> ReplicaSignals:
        worker_id = worker.member.worker_id
        load = self._simulation.fleet.load(worker)
        busy_s = worker.busy_s - self._busy_s.get(worker_id, 0.0)
        self._busy_s[worker_id] = worker.busy_s
        memory = worker.memory
        return ReplicaSignals(
            replica_id=worker_id,
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            queued_prefill_tokens=load.queued_prefill_tokens,
            kv_tokens=load.running_kv_tokens,
            kv_use=1 - memory.available_tokens / memory.capacity_tokens,
            busy=min(1.0, busy_s / interval_s),
            max_running=worker.shape.max_running,
            kv_capacity_tokens=memory.capacity_tokens,
            prefill_tokens_per_s=load.prefill_tokens_per_s,
            decode_step_s=load.decode_step_s,
        )

    def _resize(self, pool: _Pool, target: int) -> None:
        now = self._simulation.events.now
        for _ in range(target - pool.num_target):
            ready_s = now + self._config.startup_s
            heapq.heappush(pool.starting, ready_s)
            self._simulation.events.at(ready_s, lambda: self._ready(pool, now))
        surplus = pool.num_target - target
        pool.num_target = target
        # Those that have not started yet are the cheapest to give up.
        while surplus > 0 and pool.starting:
            asked_s = pool.starting.pop() - self._config.startup_s
            self._simulation.fleet.pay(now - asked_s)
            heapq.heapify(pool.starting)
            surplus -= 1
        running = [w for w in self._simulation.fleet.pool(pool.role) if not w.draining]
        for worker in sorted(running, key=lambda worker: worker.num_requests)[: max(0, surplus)]:
            worker.draining = True

    def _ready(self, pool: _Pool, asked_s: float) -> None:
        if not pool.starting or pool.starting[0] > self._simulation.events.now + 1e-9:
            # It was given up meanwhile.
            return
        heapq.heappop(pool.starting)
        worker = self._simulation.add_worker(pool.role)
        self._simulation.fleet.pay_from(worker.member.worker_id, asked_s)

    def _remove_if_drained(self, worker: SimWorker) -> None:
        desk = self._simulation.fleet.desks.get(worker.member.worker_id)
        if worker.draining and worker.idle and (desk is None or desk.idle):
            self._simulation.fleet.remove(worker.member.worker_id, paid=False)
