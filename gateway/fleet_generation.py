"""One request as its consumer reads it, whichever worker happens to run it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Protocol

from baton.protos import worker_pb2 as pb
from baton.protos.convert import optional_logprobs, token_logprobs
from baton.protos.errors import BatonError, UnavailableError, error_from_code
from baton.protos.types import FinishReason, GenerateRequest, TokenLogprob
from baton.router.plan import Plan


@dataclass(slots=True)
class TokenChunk:
    """What came since the last chunk: a slow consumer gets larger chunks, not more of them.

    `finish_reason` and `done` come with the last chunk, `prompt_logprobs` once, with the first.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    done: pb.Done | None = None


class GenerationOwner(Protocol):
    """Who decides what happens to a generation between and after its attempts."""

    def first_token(self, generation: Generation) -> None: ...
    def attempt_failed(self, generation: Generation, error: BatonError) -> None: ...
    def ended(self, generation: Generation) -> None:
        """Called once: finished, failed for good, or closed by the consumer."""


class Generation:
    """Async iterator of TokenChunk for one consumer. Made by `Fleet.generate`.

    Raises the error tree's errors once the tokens before them are consumed. Whoever stops early
    (its own cancellation included) must call `aclose`, which aborts the request in its worker.
    Belongs to one event loop.
    """

    __slots__ = (
        "_done",
        "_ended",
        "_error",
        "_finish_reason",
        "_logprobs",
        "_loop",
        "_num_taken",
        "_owner",
        "_plan",
        "_prompt_logprobs",
        "_received",
        "_waiter",
        "deadline_s",
        "num_replays",
        "request",
        "stick_to",
        "traceparent",
    )

    def __init__(
        self,
        request: GenerateRequest,
        owner: GenerationOwner,
        *,
        deadline_s: float | None = None,
        traceparent: str = "",
        stick_to: str | None = None,
    ) -> None:
        self.request = request
        self.deadline_s = deadline_s
        self.traceparent = traceparent
        self.stick_to = stick_to
        self.num_replays = 0
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._plan: Plan | None = None
        self._received: list[int] = []
        self._num_taken = 0
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob | None] | None = None
        self._finish_reason: FinishReason | None = None
        self._done: pb.Done | None = None
        self._error: BatonError | None = None
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def plan(self) -> Plan:
        """The newest plan. Raises UnavailableError while no worker could be found yet."""
        if self._plan is None:
            raise UnavailableError(f"request {self.request.request_id} waits for a decode worker")
        return self._plan

    @property
    def worker_id(self) -> str:
        """The decode worker of the newest plan."""
        return self.plan.decode.worker_id

    @property
    def done(self) -> pb.Done | None:
        """What the worker said at the end, if it came to that."""
        return self._done

    @property
    def num_received(self) -> int:
        """Tokens received so far, over all attempts."""
        return len(self._received)

    def __aiter__(self) -> AsyncIterator[TokenChunk]:
        return self

    async def __anext__(self) -> TokenChunk:
        # Once a token: every call here is paid tens of thousands of times a second.
        while True:
            if len(self._received) > self._num_taken or self._finish_reason is not None:
                return self._take()
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._waiter = waiter = self._loop.create_future()
            await waiter

    async def aclose(self) -> None:
        """Aborts the request unless it has ended; may be called any number of times."""
        if not self._ended:
            self._num_taken = len(self._received)
            self._end()

    def planned(self, plan: Plan) -> None:
        """A new attempt begins by this plan."""
        self._plan = plan

    def remaining_request(self) -> GenerateRequest:
        """What is still to be generated: the request with every received token as its output."""
        if not self._received:
            return self.request
        request = self.request
        return replace(
            request,
            output_token_ids=[*request.output_token_ids, *self._received],
            # Those came with the first token.
            sampling=replace(request.sampling, prompt_logprobs=None),
        )

    def add_token(self, token_id: int) -> None:
        if not self._received:
            self._owner.first_token(self)
        self._received.append(token_id)
        if self._waiter is not None:
            self._wake()

    def add_tokens(self, token_ids: list[int]) -> None:
        if not self._received:
            self._owner.first_token(self)
        self._received += token_ids
        if self._waiter is not None:
            self._wake()

    def add_logprobs(self, chunk: pb.LogprobChunk) -> None:
        self._logprobs += token_logprobs(chunk.tokens)
        if chunk.prompt:
            self._prompt_logprobs = optional_logprobs(chunk.prompt)

    def attempt_done(self, done: pb.Done) -> None:
        """The worker is done with it: finished, or failed in a way that the owner may mend."""
        if done.error_code:
            param = done.error_param or None
            error = error_from_code(done.error_code, done.error_message, param=param)
            self._owner.attempt_failed(self, error)
        else:
            self.finish(FinishReason(done.finish_reason), done)

    def attempt_lost(self, error: BatonError) -> None:
        self._owner.attempt_failed(self, error)

    def finish(self, reason: FinishReason, done: pb.Done | None) -> None:
        self._finish_reason = reason
        self._done = done
        self._end()

    def fail(self, error: BatonError) -> None:
        self._error = error
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._owner.ended(self)
        if self._waiter is not None:
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _take(self) -> TokenChunk:
        received = self._received
        new = received[self._num_taken :]
        self._num_taken += len(new)
        chunk = TokenChunk(new)
        if self._logprobs:
            chunk.logprobs, self._logprobs = self._logprobs, []
        if self._prompt_logprobs is not None:
            chunk.prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        if self._finish_reason is not None:
            chunk.finish_reason, self._finish_reason = self._finish_reason, None
            chunk.done = self._done
            if self._done is not None:
                chunk.num_cached_tokens = self._done.num_cached_tokens
        return chunk
