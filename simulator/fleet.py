"""The workers of one simulated cluster: their life, their cost, and how a gateway sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from baton.protos.types import Member, Role, WorkerLoad
from baton.router.prefix_index import PrefixIndex
from baton.router.times import Transfers
from baton.router.view import ClusterView, WorkerView
from baton.simulator.config import SimConfig
from baton.simulator.desk import PrefillDesk
from baton.simulator.events import Events
from baton.simulator.gaps import GapHistogram
from baton.simulator.job import Job
from baton.simulator.shape import Owner, WorkerShape
from baton.simulator.worker import SimWorker


class SimFleet:
    """Two pools. `on_ready` is called when a worker can take requests, `start_prefill` when a
    prefill worker wants a job's memory.
    """

    def __init__(
        self, config: SimConfig, block_tokens: int, events: Events, owner: Owner, gaps: GapHistogram
    ) -> None:
        self._config = config
        self._events = events
        self._owner = owner
        self._gaps = gaps
        self._shape = WorkerShape(
            kv_capacity_tokens=config.kv_capacity_tokens,
            max_running=config.max_running,
            block_tokens=block_tokens,
        )
        self._transfers = Transfers((config.times.transfer,) * 3)
        self.index = PrefixIndex(promise_stride=max(1, 512 // block_tokens))
        self.workers: dict[str, SimWorker] = {}
        self.desks: dict[str, PrefillDesk] = {}
        self._next_id = {Role.PREFILL: 0, Role.DECODE: 0}
        self._worker_seconds = 0.0
        self._paid_since: dict[str, float] = {}
        self._num_incarnations = 0

    def pool(self, role: Role) -> Iterator[SimWorker]:
        return (worker for worker in self.workers.values() if worker.member.role is role)

    def add(self, role: Role, start_job: Callable[[Job], None], worker_id: str = "") -> SimWorker:
        """A worker that is ready now; given its id it is a restart."""
        if not worker_id:
            worker_id = f"{'p' if role is Role.PREFILL else 'd'}{self._next_id[role]}"
            self._next_id[role] += 1
        self._num_incarnations += 1
        member = Member(
            worker_id=worker_id,
            incarnation=str(self._num_incarnations),
            role=role,
            address="",
            model="sim",
        )
        times = self._config.times
        pool_times = times.prefill_pool if role is Role.PREFILL else times.decode_pool
        worker = SimWorker(member, pool_times, self._shape, self._events, self._owner, self._gaps)
        self.workers[worker_id] = worker
        self._paid_since.setdefault(worker_id, self._events.now)
        if role is Role.PREFILL:
            window = self._config.window_steps * pool_times.prefill.chunk_tokens
            self.desks[worker_id] = PrefillDesk(window, start_job)
        return worker

    def pay_from(self, worker_id: str, since_s: float) -> None:
        """A worker costs from when it was asked for, not from when it was ready."""
        self._paid_since[worker_id] = since_s

    def pay(self, seconds: float) -> None:
        """For a worker that was asked for and given up before it was ready."""
        self._worker_seconds += seconds

    def remove(self, worker_id: str, *, paid: bool) -> None:
        """The worker is gone; `paid`: its GPUs are still held, for its restart."""
        del self.workers[worker_id]
        self.desks.pop(worker_id, None)
        self.index.remove_worker(worker_id)
        if not paid:
            self._worker_seconds += self._events.now - self._paid_since.pop(worker_id)

    def load(self, worker: SimWorker) -> WorkerLoad:
        """What the worker would report now, with what waits before its engine."""
        desk = self.desks.get(worker.member.worker_id)
        if desk is None:
            return worker.load()
        return worker.load(num_waiting=desk.num_waiting, queued_tokens=desk.waiting_tokens)

    def gpu_hours(self) -> float:
        """Until now, over all workers that there ever were."""
        running = sum(self._events.now - since_s for since_s in self._paid_since.values())
        return (self._worker_seconds + running) * self._config.gpus_per_worker / 3600

    def view(self) -> ClusterView:
        """What a gateway knows: reports as of the last step, and every event of prefix caches."""
        decode: list[WorkerView] = []
        prefill: list[WorkerView] = []
        for worker_id, worker in self.workers.items():
            events = worker.memory.drain_events()
            if events is not None:
                self.index.apply(worker_id, events)
            load = self.load(worker)
            desk = self.desks.get(worker_id)
            if desk is None:
                decode.append(WorkerView(worker.member, load, 0.0, times=worker.times))
                continue
            in_flight = (desk.announced_tokens, desk.num_announced)
            prefill.append(WorkerView(worker.member, load, 0.0, *in_flight, times=worker.times))
        times = self._config.times
        return ClusterView(
            tuple(decode),
            tuple(prefill),
            self._transfers,
            times.kv_bytes_per_token,
            times.handshake_s,
        )
