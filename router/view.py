"""The cluster as one gateway knows it at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from baton.protos.types import Member, WorkerLoad
from baton.router.times import H100_8B, Transfers, WorkerTimes


class WorkerState(StrEnum):
    """How this gateway stands with a worker. Only UP workers are planned for.

    CONNECTING: no hello yet, or the link broke and is being made again. REFUSED: its hello does
    not fit the fleet (`WorkerView.detail` says why). SUPERSEDED: a newer incarnation took its name.
    """

    CONNECTING = "connecting"
    UP = "up"
    REFUSED = "refused"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker: its last report, the report's age, and what was sent there since.

    `in_flight_tokens` are prompt tokens to compute there that its last report cannot know of yet,
    `in_flight_requests` the requests. `times` are its time models, learned or configured.
    """

    member: Member
    load: WorkerLoad
    age_s: float
    in_flight_tokens: int = 0
    in_flight_requests: int = 0
    state: WorkerState = WorkerState.UP
    detail: str = ""
    times: WorkerTimes = H100_8B.decode_pool

    @property
    def pending_tokens(self) -> int:
        """Prompt tokens that wait there, reported or just sent."""
        return self.load.queued_prefill_tokens + self.in_flight_tokens

    @property
    def pending_requests(self) -> int:
        """Requests that run or wait there, reported or just sent."""
        return self.load.num_running + self.load.num_waiting + self.in_flight_requests


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Everything that a plan looks at, beside the prefix index."""

    decode: tuple[WorkerView, ...]
    prefill: tuple[WorkerView, ...]
    transfers: Transfers = field(default_factory=Transfers)
    kv_bytes_per_token: int = H100_8B.kv_bytes_per_token
    handshake_s: float = H100_8B.handshake_s
