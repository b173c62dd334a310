"""The prompts that a prefill worker has taken: waiting, started, sent."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from baton.kvtransfer.connector import PeerKey
from baton.kvtransfer.session import SendSession
from baton.protos import worker_pb2 as pb
from baton.protos.types import GenerateRequest


class JobState(Enum):
    """A prompt's life at a prefill worker.

    ::

        PULLING (its prefix comes from another worker)
           │
           v
        WAITING ──> RUNNING ──> SENDING ──> gone (Released was said)
                    (in the     (computed, writes or
                     engine)     the reservation to come)

    The decode worker reserves blocks while the engine computes: no prompt waits for the answer.

        any state ──> CANCELLED ──> gone, when nothing is in flight
    """

    PULLING = "pulling"
    WAITING = "waiting"
    RUNNING = "running"
    SENDING = "sending"
    CANCELLED = "cancelled"


_NOT_BEGUN: Final = (JobState.PULLING, JobState.WAITING)


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One prompt. `reply` sends to the decode worker that asked, and drops once that is gone."""

    request: GenerateRequest
    owner: PeerKey
    reply: Callable[[pb.PrefillMessage], None]
    session: SendSession
    queued_s: float
    # A block of the receiver with all heads of the model.
    target_block_bytes: int
    # Who has a longer prefix of it than this worker (`PeerKey.agent`), and what came from there.
    source: str = ""
    num_pulled_tokens: int = 0
    state: JobState = JobState.PULLING
    started_s: float = 0.0
    # For its spans and its line in the log: what they are under, and what there is to say.
    traceparent: str = ""
    of_request: str = ""
    first_token_s: float = 0.0
    num_cached_tokens: int = 0
    posted_s: float = 0.0
    pushed_s: float = 0.0
    num_pushed_bytes: int = 0
    reserve_timer: asyncio.TimerHandle | None = None
    # Sampled before the decode worker said where to write; it goes out then.
    first: pb.PrefillMessage | None = None

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_tokens(self) -> int:
        """Tokens to compute if nothing of it is cached."""
        return len(self.request.prompt_token_ids) + len(self.request.output_token_ids)

    @property
    def started(self) -> bool:
        """Its tokens are in the engine, or kept here until there is room for them there."""
        return self.state is JobState.RUNNING or self.first is not None


class JobTable:
    """All jobs of one worker: by id, and the waiting ones by (priority, arrival)."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._waiting: list[tuple[int, int, Job]] = []
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def add(self, job: Job) -> None:
        self._jobs[job.request_id] = job

    def enqueue(self, job: Job) -> None:
        """From now on it waits for its turn."""
        job.state = JobState.WAITING
        heapq.heappush(self._waiting, (job.request.priority, next(self._arrivals), job))

    def get(self, request_id: str) -> Job | None:
        return self._jobs.get(request_id)

    def remove(self, job: Job) -> None:
        self._jobs.pop(job.request_id, None)

    def next_waiting(self) -> Job | None:
        """Takes the first job that still waits, or None."""
        while self._waiting:
            job = heapq.heappop(self._waiting)[2]
            if job.state is JobState.WAITING:
                return job
        return None

    @property
    def num_waiting(self) -> int:
        return sum(job.state in _NOT_BEGUN for job in self._jobs.values())

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens that no engine has been given yet."""
        return sum(job.num_tokens for job in self._jobs.values() if job.state in _NOT_BEGUN)

    @property
    def num_started_tokens(self) -> int:
        """Prompt tokens that the engine computes, or holds without knowing where they go."""
        return sum(job.num_tokens for job in self._jobs.values() if job.started)
