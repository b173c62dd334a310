"""One request that a decode worker owns."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum

from baton.kvtransfer.session import ReceiveSession
from baton.protos import worker_pb2 as pb
from baton.protos.feed import GatewayFeed
from baton.protos.types import GenerateRequest, RequestOutput


class Phase(Enum):
    """Where the request's KV is.

    ::

        START ──> LOCAL ─────────────────────────────> (in the engine until it ends)
          │         ^
          │         │ the prefill worker failed, refused or took too long
          └──> ASKED ──> WAITING ──> RECEIVING ──> LOCAL
                 (it asks for blocks) (granted)     (all KV proved)
    """

    START = "start"
    ASKED = "asked"
    WAITING = "waiting"
    RECEIVING = "receiving"
    LOCAL = "local"


@dataclass(slots=True, kw_only=True)
class Live:
    """A request between its submission and its `Done`.

    `attempt_id` names it in the engine and at the prefill worker, and is new for every attempt, so
    that nothing late from an attempt that was given up can touch the next one.
    """

    feed: GatewayFeed
    handle: int
    request: GenerateRequest
    targets: list[pb.PrefillTarget]
    submitted_s: float
    deadline_s: float
    attempt_id: str = ""
    phase: Phase = Phase.START
    ended: bool = False
    session: ReceiveSession | None = None
    first: RequestOutput | None = None
    # Tokens that went to the gateway before the request joined this engine's batch.
    emitted: list[int] = field(default_factory=list)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    prefilled_by: str = ""
    fallback_reason: str = ""
    num_cached_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    first_token_s: float = 0.0
    transfer_s: float = 0.0

    def stop_timers(self) -> None:
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()
