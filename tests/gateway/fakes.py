"""A scripted Fleet: the interface that the fronts call, without workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from baton.gateway.fleet_generation import TokenChunk
from baton.gateway.seam import Figure
from baton.protos import worker_pb2 as pb
from baton.protos.adapters import AdapterLoad
from baton.protos.errors import BatonError, UnavailableError
from baton.protos.types import (
    FinishReason,
    GenerateRequest,
    GrammarCounts,
    Member,
    Role,
    TierLoad,
    TokenLogprob,
    WorkerLoad,
)
from baton.router.admission import TenantStatistics
from baton.router.decision import Plan
from baton.router.view import WorkerView

DECODE = Member(worker_id="d0", incarnation="1", role=Role.DECODE, address="d0:1", model="tiny")
PREFILL = Member(worker_id="p0", incarnation="1", role=Role.PREFILL, address="p0:1", model="tiny")

# What a request's answer is, as token ids.
Script = Callable[[GenerateRequest], Sequence[int]]


@dataclass(frozen=True, slots=True)
class FakeModel:
    max_model_len: int = 8192
    vocab_size: int = 1024


@dataclass(eq=False)
class FakeGeneration:
    """Plays token ids in chunks of `per_chunk`, `delay_s` apart; `fail_after` tokens it raises
    `error`.
    """

    request: GenerateRequest
    fleet: FakeFleet
    token_ids: Sequence[int]
    closed: bool = False
    taken: int = 0
    plan: Plan = field(default_factory=lambda: Plan(DECODE, (PREFILL,), "remote_cheaper"))
    worker_id: str = "d0"

    def __aiter__(self) -> AsyncIterator[TokenChunk]:
        return self

    async def __anext__(self) -> TokenChunk:
        if self.closed:
            raise StopAsyncIteration
        fleet = self.fleet
        await asyncio.sleep(fleet.delay_s)
        if fleet.error is not None and self.taken >= fleet.fail_after:
            raise fleet.error
        wanted = self.request.sampling
        start, end = self.taken, min(self.taken + fleet.per_chunk, len(self.token_ids))
        self.taken = end
        ids = list(self.token_ids[start:end])
        chunk = TokenChunk(ids)
        if wanted.logprobs is not None:
            chunk.logprobs = [fake_logprob(i, wanted.logprobs) for i in ids]
        if wanted.prompt_logprobs is not None and start == 0:
            prompt = self.request.prompt_token_ids
            chunk.prompt_logprobs = [None] + [
                fake_logprob(i, wanted.prompt_logprobs) for i in prompt[1:]
            ]
        if end == len(self.token_ids):
            stopped = not wanted.ignore_eos and len(self.token_ids) < wanted.max_tokens
            chunk.finish_reason = FinishReason.STOP if stopped else FinishReason.LENGTH
            chunk.num_cached_tokens = 16
            if self.request.grammar is not None:
                chunk.done = pb.Done(grammar_backend="guidance")
            self._end()
        return chunk

    async def aclose(self) -> None:
        if not self.closed:
            self.fleet.num_aborted += 1
            self._end()

    def _end(self) -> None:
        self.closed = True
        self.fleet.running.discard(self)


class FakePlanner:
    """Knows one request."""

    def explain(self, request_id: str) -> list[dict[str, Any]]:
        return [{"request_id": request_id}] if request_id == "known" else []

    def figures(self, workers: Sequence[Any]) -> list[Figure]:
        return [Figure("model_handshake_seconds", "Handshake.", (), 0.003)]


class FakeFleet:
    """Answers every request by `script`; counts what is running and what was aborted."""

    def __init__(self, script: Script, *, per_chunk: int = 1, delay_s: float = 0.0) -> None:
        self.planner = FakePlanner()
        self.tracing = None
        self.script = script
        self.per_chunk = per_chunk
        self.delay_s = delay_s
        self.error: BatonError | None = None
        self.fail_after = 0
        self.plan_error: BatonError | None = None
        self.ready = True
        self.running: set[FakeGeneration] = set()
        self.requests: list[GenerateRequest] = []
        self.stuck_to: list[str | None] = []
        self.timeouts_s: list[float | None] = []
        self.asked_by: list[tuple[str, float | None]] = []
        self.num_aborted = 0
        self.adapter_loads: list[tuple[Member, AdapterLoad]] = []

    @property
    def model(self) -> FakeModel:
        if not self.ready:
            raise UnavailableError("no worker is known yet")
        return FakeModel()

    def generate(
        self,
        request: GenerateRequest,
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
        stick_to: str | None = None,
        tenant: str = "everybody",
        ttft_s: float | None = None,
    ) -> FakeGeneration:
        if self.plan_error is not None:
            raise self.plan_error
        self.requests.append(request)
        self.stuck_to.append(stick_to)
        self.timeouts_s.append(timeout_s)
        self.asked_by.append((tenant, ttft_s))
        token_ids = list(self.script(request))[: request.sampling.max_tokens]
        generation = FakeGeneration(request, self, token_ids)
        self.running.add(generation)
        return generation

    def adapters(self) -> list[tuple[Member, AdapterLoad]]:
        return self.adapter_loads

    def tenants(self) -> list[TenantStatistics]:
        return []

    def workers(self) -> list[WorkerView]:
        load = WorkerLoad(
            num_running=len(self.running),
            total_blocks=64,
            free_blocks=32,
            tiers=(TierLoad("disk", 5, 9, 8, 6, 5, 1, 0, 0.001),),
            grammars=GrammarCounts(
                compiled={"guidance": 3, "xgrammar": 1}, refused={"invalid": 2}, num_hits=7
            ),
        )
        return [WorkerView(DECODE, load, 0.1), WorkerView(PREFILL, WorkerLoad(), 0.2)]


def fake_logprob(token_id: int, num_top: int) -> TokenLogprob:
    others = [(t, -1.0 - t) for t in range(10, 9 + num_top)]
    top = ((token_id, -0.5), *others) if num_top else ()
    return TokenLogprob(token_id, -0.5, 1, top[:num_top])
