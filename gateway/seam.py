"""What the fronts need of a `Fleet`, as Protocols, so that they can be tested against a scripted one.

`gateway/fleet.py` is the implementation; docs/interfaces.md describes it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from baton.protos.types import FinishReason, GenerateRequest, Member, TokenLogprob, WorkerLoad


class TokenChunk(Protocol):
    """New tokens of one sequence: everything that was ready when it was asked for.

    `token_ids` includes the token that ended it (an eos or a stop id); `prompt_logprobs` comes once, with
    the first chunk.
    """

    @property
    def token_ids(self) -> list[int]: ...
    @property
    def logprobs(self) -> list[TokenLogprob] | None: ...
    @property
    def prompt_logprobs(self) -> list[TokenLogprob | None] | None: ...
    @property
    def finish_reason(self) -> FinishReason | None: ...
    @property
    def num_cached_tokens(self) -> int: ...


class Plan(Protocol):
    """Where a request was sent, and why."""

    @property
    def prefill(self) -> Sequence[Member]: ...
    @property
    def reason(self) -> str: ...
    def header(self) -> str: ...


class Generation(Protocol):
    """The tokens of one sequence. Raises the error tree's errors; `aclose` aborts it in every worker."""

    @property
    def plan(self) -> Plan: ...
    def __aiter__(self) -> AsyncIterator[TokenChunk]: ...
    async def aclose(self) -> None: ...


class WorkerView(Protocol):
    """One connected worker as this gateway sees it."""

    @property
    def member(self) -> Member: ...
    @property
    def load(self) -> WorkerLoad: ...
    @property
    def age_s(self) -> float: ...
    @property
    def in_flight_requests(self) -> int: ...
    @property
    def in_flight_tokens(self) -> int: ...


class Fleet(Protocol):
    """This gateway's workers. `generate` plans at once: UnavailableError without a decode worker."""

    def generate(
        self, request: GenerateRequest, *, timeout_s: float | None = None, traceparent: str = ""
    ) -> Generation: ...
    def workers(self) -> Sequence[WorkerView]: ...
