"""What waits before a prefill worker's engine: the twin of `prefill_worker.jobs`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from baton.simulator.job import Job


class PrefillDesk:
    """Jobs in the order of arrival. A job starts while the engine will soon want work; starting it
    asks its decode worker for memory.
    """

    def __init__(self, window_tokens: int, start: Callable[[Job], None]) -> None:
        self._window_tokens = window_tokens
        self._start = start
        self._waiting: deque[tuple[Job, int]] = deque()
        self._started: dict[Job, int] = {}
        self._started_tokens = 0
        self.waiting_tokens = 0
        # On their way here: a gateway counts them as in flight.
        self.num_announced = 0
        self.announced_tokens = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def announce(self, job: Job) -> None:
        """It was sent here, and will be added."""
        self.num_announced += 1
        self.announced_tokens += job.num_new

    def add(self, job: Job, attempt: int) -> None:
        """Queues an announced job, unless its attempt was given up meanwhile."""
        self.num_announced -= 1
        self.announced_tokens -= job.num_new
        if job.attempt != attempt:
            return
        self._waiting.append((job, job.attempt))
        self.waiting_tokens += job.num_new
        self.start_waiting()

    def done(self, job: Job) -> None:
        """It is computed, or was given up: the next may start."""
        self._started_tokens -= self._started.pop(job, 0)
        self.start_waiting()

    def start_waiting(self) -> None:
        while self._waiting and self._started_tokens < self._window_tokens:
            job, attempt = self._waiting.popleft()
            self.waiting_tokens -= job.num_new
            if job.attempt == attempt and not job.ended:
                self._started[job] = job.num_new
                self._started_tokens += job.num_new
                self._start(job)

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._started or self.num_announced)
