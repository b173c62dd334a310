"""One sequence of an answer: tokens from a worker become text, until a stop string or the worker
ends it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Self

from baton.gateway.detokenize import IncrementalText
from baton.gateway.reply import CallDelta, ReplyReader
from baton.gateway.seam import Generation, Plan, TokenChunk
from baton.gateway.stop_strings import StopChecker
from baton.protos.errors import BatonError, UnavailableError
from baton.protos.types import FinishReason, TokenLogprob
from baton.protos.worker_pb2 import Done


@dataclass(slots=True)
class Delta:
    """What became certain since the last one. `finish_reason` ("stop", "length", or "tool_calls")
    only in the last one. `text` is content; `reasoning` and `calls` are taken out of it.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: str | None
    reasoning: str = ""
    calls: Sequence[CallDelta] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceRules:
    """How tokens become this sequence's text. Stop strings count only after `min_tokens`."""

    text: IncrementalText
    stop: StopChecker | None = None
    reader: ReplyReader | None = None
    min_tokens: int = 0
    observe: Callable[[int], None] | None = None


class Choice:
    """Async iterator of Delta over one Generation; `aclose` aborts it in every worker, at any
    moment.

    `start` opens the generation, at `begin` or with the first delta; it may wait.
    `rules.observe(num_tokens)` is called for each delta.
    """

    def __init__(
        self, index: int, start: Callable[[], Awaitable[Generation]], rules: ChoiceRules
    ) -> None:
        self.index = index
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.num_reasoning_tokens = 0
        # What its worker said at the end; None until then, and where a stop string ended it first.
        self.done: Done | None = None
        self.prompt_logprobs: list[TokenLogprob | None] | None = None
        self._start = start
        self._rules = rules
        self._generation: Generation | None = None
        self._chunks: AsyncIterator[TokenChunk] | None = None
        self._finished = False

    async def begin(self) -> AsyncIterator[TokenChunk]:
        """Sends it to a worker. Raises what planning raises."""
        self._generation = await self._start()
        self._chunks = aiter(self._generation)
        return self._chunks

    @property
    def generation(self) -> Generation:
        """Only after it has begun."""
        if self._generation is None:
            raise BatonError(f"choice {self.index} was asked for its generation before it began")
        return self._generation

    @property
    def grammar_backend(self) -> str:
        """Who enforced its grammar, once it has ended; empty without one."""
        return "" if self.done is None else self.done.grammar_backend

    @property
    def plan(self) -> Plan:
        """Where it runs; there from the first delta on."""
        return self.generation.plan

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        if self._finished:
            raise StopAsyncIteration
        chunks = self._chunks or await self.begin()
        try:
            chunk = await anext(chunks)
        except StopAsyncIteration:
            raise BatonError("the worker's stream ended without a finish reason") from None
        delta = self._take(chunk)
        if self._rules.reader is not None:
            self._read(delta, self._rules.reader)
        if self._rules.observe is not None:
            self._rules.observe(len(delta.token_ids))
        if delta.finish_reason is not None:
            self.done = chunk.done
            await self.aclose()
        return delta

    async def aclose(self) -> None:
        """Ends the generation in every worker; harmless when it has ended."""
        self._finished = True
        if self._generation is not None:
            await self._generation.aclose()

    def _read(self, delta: Delta, reader: ReplyReader) -> None:
        """Takes the delta's text apart."""
        said = reader.read(delta.text, delta.token_ids, last=delta.finish_reason is not None)
        delta.text, delta.reasoning, delta.calls = said.content, said.reasoning, said.calls
        if delta.finish_reason == FinishReason.STOP.value and reader.num_calls:
            delta.finish_reason = "tool_calls"
        self.num_reasoning_tokens = reader.num_reasoning_tokens

    def _take(self, chunk: TokenChunk) -> Delta:
        reason = chunk.finish_reason
        if reason is FinishReason.ABORT or reason is FinishReason.ERROR:
            raise UnavailableError(f"the worker ended the request early: {reason.value}")
        if chunk.num_cached_tokens:
            self.num_cached_tokens = chunk.num_cached_tokens
        if chunk.prompt_logprobs is not None:
            self.prompt_logprobs = chunk.prompt_logprobs
        if self._rules.stop is not None:
            return self._take_checked(chunk, self._rules.stop)
        token_ids = chunk.token_ids
        self.num_tokens += len(token_ids)
        # A token that stopped the sequence is counted and reported, but is not part of the text.
        text = self._rules.text.push(token_ids[:-1] if reason is FinishReason.STOP else token_ids)
        if reason is None:
            return Delta(text, token_ids, chunk.logprobs, None)
        return Delta(text + self._rules.text.finish(), token_ids, chunk.logprobs, reason.value)

    def _take_checked(self, chunk: TokenChunk, stop: StopChecker) -> Delta:
        """Token by token: the answer ends with the token that completed a stop string."""
        reason = chunk.finish_reason
        last = len(chunk.token_ids) - 1
        parts: list[str] = []
        for i, token_id in enumerate(chunk.token_ids):
            self.num_tokens += 1
            ends_it = reason is FinishReason.STOP and i == last
            piece = "" if ends_it else self._rules.text.push((token_id,))
            if self.num_tokens <= self._rules.min_tokens:
                parts.append(piece)
                continue
            text, stopped = stop.push(piece)
            parts.append(text)
            if stopped:
                return _cut(chunk, i + 1, parts)
        if reason is None:
            return Delta("".join(parts), chunk.token_ids, chunk.logprobs, None)
        text, stopped = stop.push(self._rules.text.finish())
        parts.append(text)
        if stopped:
            return _cut(chunk, last + 1, parts)
        parts.append(stop.finish())
        return Delta("".join(parts), chunk.token_ids, chunk.logprobs, reason.value)


def _cut(chunk: TokenChunk, size: int, parts: list[str]) -> Delta:
    logprobs = chunk.logprobs[:size] if chunk.logprobs is not None else None
    return Delta("".join(parts), chunk.token_ids[:size], logprobs, FinishReason.STOP.value)
