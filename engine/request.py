"""One sequence inside an engine: its tokens, its blocks, and where its state changes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from baton.engine.grammar.constraint import Constraint
from baton.protos.errors import BatonError, InvalidRequestError
from baton.protos.hashing import adapter_salt, block_hashes
from baton.protos.types import GenerateRequest, RequestOutput, SamplingParams, TokenLogprob


class RequestState(Enum):
    """Where a request is in its life.

        add() ◄──► COMPILING: its grammar is compiled   reserve()
          │        (also between TRANSFERRING and READY)   │
          │ FETCHING: blocks come from lower tiers         │
          ▼    ▼                                           ▼
        QUEUED ──────► PREFILLING ──────► PREFILLED   TRANSFERRING   its KV is written by another
          ▲ ▲ └► LOADING ► │  │ hold=True     │            │         worker
          │ │  (has blocks, which host        │            │
          │ │   memory fills) │  │            │            │
          │ └──────────────┘  │               │ release()  │ receive()
          │    preempted      ▼               │            ▼
          └─────────────── DECODING ◄─────────┼───────── READY       its KV is complete, it waits
             preempted        │               │            │         for a slot in the batch
                              ▼               ▼            │
                           FINISHED ◄──────────            ▼
                                          abort() in any state: CANCELLED

    QUEUED and READY lead to COLD and back where the request's turn has come, but its adapter is not
    on the device. QUEUED and TRANSFERRING may also finish at once: a replay whose last token
    already ended the request, a handover whose first token did, a grammar that cannot be compiled.
    Other failures are never one request's alone: an exception in a step ends the engine, and the
    worker that owns it fails all of its requests.
    """

    COMPILING = "compiling"
    FETCHING = "fetching"
    QUEUED = "queued"
    COLD = "cold"
    LOADING = "loading"
    PREFILLING = "prefilling"
    PREFILLED = "prefilled"
    TRANSFERRING = "transferring"
    READY = "ready"
    DECODING = "decoding"
    FINISHED = "finished"
    CANCELLED = "cancelled"


TERMINAL = frozenset({RequestState.FINISHED, RequestState.CANCELLED})

_S = RequestState
_ALLOWED: dict[RequestState, frozenset[RequestState]] = {
    _S.COMPILING: frozenset({_S.QUEUED, _S.READY, _S.FINISHED, _S.CANCELLED}),
    _S.QUEUED: frozenset(
        {_S.COMPILING, _S.FETCHING, _S.COLD, _S.LOADING, _S.PREFILLING, _S.FINISHED, _S.CANCELLED}
    ),
    _S.COLD: frozenset({_S.QUEUED, _S.READY, _S.CANCELLED}),
    _S.FETCHING: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.LOADING: frozenset({_S.PREFILLING, _S.CANCELLED}),
    _S.PREFILLING: frozenset({_S.DECODING, _S.PREFILLED, _S.QUEUED, _S.FINISHED, _S.CANCELLED}),
    _S.PREFILLED: frozenset({_S.FINISHED, _S.CANCELLED}),
    _S.TRANSFERRING: frozenset({_S.COMPILING, _S.READY, _S.FINISHED, _S.CANCELLED}),
    _S.READY: frozenset({_S.COLD, _S.DECODING, _S.CANCELLED}),
    _S.DECODING: frozenset({_S.QUEUED, _S.FINISHED, _S.CANCELLED}),
    _S.FINISHED: frozenset(),
    _S.CANCELLED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Transition:
    """When and why a request entered its state; `at_s` is on the engine's clock."""

    state: RequestState
    cause: str
    at_s: float


class Request:
    """A sequence in an engine: `num_computed_tokens` of the `len(token_ids)` known tokens.

    Written by the scheduler only. What the runner reads:

    token_ids: prompt, then output; grows by one with each sampled token, once that is known here.
    block_ids: the blocks that hold its KV, block i the tokens [i * block_size, (i+1) * block_size).
        While the request is in the batch the list only grows, and covers every token of a step
        before the step runs.
    num_computed_tokens: KV of tokens [0, num_computed_tokens) is in the pool, or will be once the
        steps that were launched have run.
    given_until: tokens below it may be there without a step having sampled them: the grammar left
        no choice. The row that computes them gives them to the runner.
    num_redundant: tokens that launched steps sample though they are in `token_ids` already.
    unsaid: output tokens that no output has told of.
    num_pending: tokens that launched steps sample, and that are not in `token_ids` yet.
    num_launched: steps under way that hold a row of it.
    slot: row of the batch state, -1 outside the batch. It does not change between the runner's
        add_row and remove_row; after a preemption the request may come back in another one.
    adapter_slot: where its adapter is on the device, which it holds there while it is in the batch
        or about to be; -1: none.
    began_s: when it first got a place in the batch to have its prompt computed; 0: not yet.
    constraint: what its output must be, once its grammar is compiled; None if it may be anything.
    """

    __slots__ = (
        "adapter_id",
        "adapter_slot",
        "began_s",
        "block_hashes",
        "block_ids",
        "cache_salt",
        "constraint",
        "epoch",
        "given_until",
        "grammar",
        "hold",
        "last",
        "max_total_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_launched",
        "num_pending",
        "num_preemptions",
        "num_prompt_tokens",
        "num_published_blocks",
        "num_redundant",
        "order",
        "prompt_logprobs",
        "prompt_logprobs_done",
        "request_id",
        "sampling",
        "slot",
        "state",
        "stop_ids",
        "thought",
        "token_ids",
        "unsaid",
    )

    def __init__(
        self, request: GenerateRequest, *, arrival: int, state: RequestState, now_s: float
    ) -> None:
        self.request_id = request.request_id
        self.sampling: SamplingParams = request.sampling
        self.cache_salt = adapter_salt(request.cache_salt, request.adapter_id)
        self.adapter_id = request.adapter_id
        self.adapter_slot = -1
        self.grammar = request.grammar
        self.thought = request.thought
        self.constraint: Constraint | None = None
        self.token_ids: list[int] = [*request.prompt_token_ids, *request.output_token_ids]
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.order: tuple[int, int] = (request.priority, arrival)
        # What ends it; the engine's rules narrow both (model's eos, model's context).
        self.stop_ids = frozenset(request.sampling.stop_token_ids)
        self.max_total_tokens = self.num_prompt_tokens + request.sampling.max_tokens
        self.hold = False
        self.began_s = 0.0
        self.epoch = 0
        self.slot = -1
        self.block_ids: list[int] = []
        self.block_hashes: list[bytes] = []
        self.num_computed_tokens = 0
        self.num_pending = 0
        self.num_redundant = 0
        self.given_until = 0
        self.unsaid: list[int] = []
        self.num_launched = 0
        self.num_cached_tokens = 0
        self.num_published_blocks = 0
        self.num_preemptions = 0
        self.prompt_logprobs: list[TokenLogprob | None] = [None]
        # A replay has had its first token delivered, and the prompt's logprobs travel with that.
        self.prompt_logprobs_done = (
            request.sampling.prompt_logprobs is None or len(request.output_token_ids) > 0
        )
        self.state = state
        self.last = Transition(state, "new", now_s)

    @property
    def num_tokens(self) -> int:
        """Tokens, prompt and output, those that are being sampled included."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_output_tokens(self) -> int:
        """Output tokens, those replayed from elsewhere included."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) + self.num_pending - self.num_computed_tokens

    @property
    def ends_with_pending(self) -> bool:
        """Whether the token that is being sampled is sure to be its last here."""
        return self.num_pending > 0 and (self.hold or self.num_tokens >= self.max_total_tokens)

    @property
    def needs_prompt_logprobs(self) -> bool:
        """Whether the prompt positions of its next chunk must report log-probabilities."""
        return not self.prompt_logprobs_done

    def advance(self, to: RequestState, cause: str, now_s: float) -> None:
        """The only place where the state changes. Raises BatonError on a move the table lacks."""
        if to not in _ALLOWED[self.state]:
            raise BatonError(
                f"request {self.request_id} cannot go from {self.state.value} to {to.value} "
                f"({cause}); allowed: {sorted(s.value for s in _ALLOWED[self.state])}"
            )
        self.state = to
        self.last = Transition(to, cause, now_s)
        if to is RequestState.PREFILLING and not self.began_s:
            self.began_s = now_s

    def take_first(self, first: RequestOutput) -> None:
        """Another worker computed all of its KV, and sampled `first`. Raises InvalidRequestError
        if that is not one token."""
        if len(first.token_ids) != 1 and first.finish_reason is None:
            raise InvalidRequestError(
                f"request {self.request_id}: a handover brings one token, not"
                f" {len(first.token_ids)}",
                param="first",
            )
        self.num_computed_tokens = self.num_tokens
        self.num_cached_tokens = first.num_cached_tokens
        self.prompt_logprobs_done = True
        self.token_ids += first.token_ids
        if self.constraint is not None:
            self.constraint.replay(first.token_ids)

    def take_prompt_logprobs(self) -> list[TokenLogprob | None]:
        """All of them, once; raises BatonError if some are missing."""
        found = self.prompt_logprobs
        if len(found) != self.num_prompt_tokens:
            raise BatonError(
                f"request {self.request_id}: {len(found)} prompt logprobs for "
                f"{self.num_prompt_tokens} prompt tokens"
            )
        self.prompt_logprobs_done = True
        self.prompt_logprobs = []
        return found

    def extend_hashes(self, block_size: int, num_blocks: int) -> None:
        """Makes `block_hashes` cover the first `num_blocks` blocks, which must be full."""
        start = len(self.block_hashes)
        if num_blocks > start:
            self.block_hashes += block_hashes(
                self.token_ids[start * block_size : num_blocks * block_size],
                block_size,
                salt=self.cache_salt,
                parent=self.block_hashes[-1] if start else None,
            )
