"""One request that a decode worker owns."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum

from baton.kvtransfer.session import ReceiveSession
from baton.protos import worker_pb2 as pb
from baton.protos.errors import BatonError
from baton.protos.feed import GatewayFeed
from baton.protos.tracing import Span
from baton.protos.types import FinishReason, GenerateRequest, RequestOutput


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
    # What the spans of its prompt are under; its own, where there are traces.
    traceparent: str = ""
    span: Span | None = None
    phase: Phase = Phase.START
    ended: bool = False
    session: ReceiveSession | None = None
    first: RequestOutput | None = None
    # The connector looks for its KV often.
    expected: bool = False
    # Tokens that went to the gateway before the request joined this engine's batch.
    emitted: list[int] = field(default_factory=list)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    prefilled_by: str = ""
    fallback_reason: str = ""
    num_cached_tokens: int = 0
    # Who has the longest prefix of its prompt, for the prefill worker to fetch; and what came.
    pull_from: pb.PrefillTarget | None = None
    num_pulled_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    first_token_s: float = 0.0
    transfer_s: float = 0.0

    # The engine's last output, or the prefill worker's.
    last: RequestOutput | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens that are known before it decodes; of a replay also those that were generated."""
        return len(self.request.prompt_token_ids) + len(self.request.output_token_ids)

    def done(self, reason: FinishReason, error: BatonError | None) -> pb.Done:
        """How it ended, for its gateway."""
        message = pb.Done(
            handle=self.handle,
            finish_reason=reason.value,
            num_cached_tokens=self.num_cached_tokens,
            prefilled_by=self.prefilled_by,
            fallback_reason=self.fallback_reason,
            queue_s=self.queue_s,
            prefill_s=self.prefill_s,
            transfer_s=self.transfer_s,
            num_pulled_tokens=self.num_pulled_tokens,
        )
        if self.last is not None:
            message.num_reasoning_tokens = self.last.num_reasoning_tokens
            message.grammar_backend = self.last.grammar_backend
        if error is not None:
            message.error_code, message.error_message = error.code, error.message
            message.error_param = error.param or ""
        return message

    def stop_timers(self) -> None:
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()
