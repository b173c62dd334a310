"""What the fronts need of a `Fleet`, as Protocols, so that they can be tested against a scripted
one.

`gateway/fleet.py` is the implementation; docs/interfaces.md describes it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from baton.gateway.tenants import EVERYBODY
from baton.protos.adapters import AdapterLoad
from baton.protos.tracing import Tracing
from baton.protos.types import FinishReason, GenerateRequest, Member, TokenLogprob, WorkerLoad
from baton.protos.worker_pb2 import Done
from baton.router.admission import TenantStatistics


class TokenChunk(Protocol):
    """New tokens of one sequence: everything that was ready when it was asked for.

    `token_ids` includes the token that ended it (an eos or a stop id); `prompt_logprobs` comes
    once, with the first chunk, `num_cached_tokens` and `done` with the last.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    prompt_logprobs: list[TokenLogprob | None] | None
    finish_reason: FinishReason | None
    num_cached_tokens: int
    done: Done | None


class Plan(Protocol):
    """Where a request was sent, and why (`reason` is one of a few words)."""

    @property
    def prefill(self) -> Sequence[Member]: ...
    @property
    def reason(self) -> str: ...
    def header(self) -> str: ...


class Generation(Protocol):
    """The tokens of one sequence. Raises the error tree's errors; `aclose` aborts it in every
    worker.

    `plan` and `worker_id` (of the decode worker) are there from the first token on.
    """

    @property
    def plan(self) -> Plan: ...
    @property
    def worker_id(self) -> str: ...
    def __aiter__(self) -> AsyncIterator[TokenChunk]: ...
    async def aclose(self) -> None: ...


class WorkerView(Protocol):
    """One known worker as this gateway sees it."""

    @property
    def member(self) -> Member: ...
    @property
    def load(self) -> WorkerLoad: ...
    @property
    def age_s(self) -> float: ...
    @property
    def in_flight_requests(self) -> int: ...
    @property
    def adapters(self) -> frozenset[str]: ...


class ModelFacts(Protocol):
    """What the workers agree on."""

    @property
    def max_model_len(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


class Figure(NamedTuple):
    """One gauge of /metrics: its name without `baton_`, its labels, its value."""

    name: str
    help_text: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Planner(Protocol):
    """What this gateway decided, and what it has learned."""

    def explain(self, request_id: str) -> list[dict[str, Any]]:
        """The decisions for one of the last requests, oldest first; none if it is not known."""

    def figures(self, workers: Sequence[Any]) -> list[Figure]:
        """What was learned, for /metrics; figures of one name together."""


class Fleet(Protocol):
    """This gateway's workers. `model` raises UnavailableError until a worker said what it serves.

    `stick_to` names the decode worker that should be preferred: it has the prompt. A request waits
    for its `tenant`'s turn, and is refused where its first token cannot come within `ttft_s`.
    """

    def generate(
        self,
        request: GenerateRequest,
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
        stick_to: str | None = None,
        tenant: str = EVERYBODY,
        ttft_s: float | None = None,
    ) -> Generation: ...
    def workers(self) -> Sequence[WorkerView]: ...
    @property
    def planner(self) -> Planner: ...
    @property
    def tracing(self) -> Tracing | None: ...
    def tenants(self) -> Sequence[TenantStatistics]: ...
    def adapters(self) -> Sequence[tuple[Member, AdapterLoad]]: ...
    @property
    def ready(self) -> bool: ...
    @property
    def model(self) -> ModelFacts: ...


class ProfileTrace(NamedTuple):
    """A worker's steps under torch's profiler: Chrome's trace format, gzip."""

    worker_id: str
    num_steps: int
    data: bytes


class ClusterControl(Protocol):
    """What an operator may ask of the cluster through a gateway. Plain values both ways; raises
    BatonError.
    """

    async def config(self) -> dict[str, Any]:
        """The configuration that runs, secrets hidden."""

    @property
    def targets(self) -> Mapping[str, int]:
        """The replicas that autoscaling asks for, by pool; none where nothing is autoscaled."""

    async def scaling(self) -> dict[str, Any]:
        """Pool sizes: settings, newest decisions and why."""

    async def apply_scaling(self, pools: Mapping[str, Any]) -> dict[str, Any]:
        """Replaces pools' bounds and scaling settings; says what changed."""

    async def profile(self, worker: str, *, seconds: float, steps: int) -> ProfileTrace:
        """A trace of a worker's next steps; `worker` is its id, or how that begins."""
