"""Value types that several processes or layers share. Plain data, no behaviour but validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from baton.protos.constraints import Grammar, Thought
from baton.protos.errors import BatonError, InvalidRequestError


class Role(StrEnum):
    """What a worker does. `BOTH` is an engine that serves without a second pool."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


class FinishReason(StrEnum):
    """Why a request ended. STOP: eos, a stop id or a stop string. LENGTH: max_tokens or context."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens. Always carries a seed, so any worker continues with the same tokens.

    top_k 0 means off; `logprobs` k reports the chosen token and the k best ones (None: no report).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    @property
    def penalizes(self) -> bool:
        """Whether tokens that came before change the odds."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def validate(self, vocab_size: int, max_logprobs: int = 20) -> None:
        """Raises InvalidRequestError naming the first field that is wrong, and what would work."""
        _in_range("temperature", self.temperature, 0.0, 100.0)
        _in_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("repetition_penalty", self.repetition_penalty, 0.0, 10.0, open_low=True)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _in_range("top_k", self.top_k, 0, 2**31 - 1)
        _in_range("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _in_range("min_tokens", self.min_tokens, 0, self.max_tokens)
        _in_range("seed", self.seed, -(2**63), 2**63 - 1)
        for name, wanted in (
            ("logprobs", self.logprobs),
            ("prompt_logprobs", self.prompt_logprobs),
        ):
            if wanted is not None:
                _in_range(name, wanted, 0, max_logprobs)
        for token_id, bias in self.logit_bias:
            _in_range("logit_bias", token_id, 0, vocab_size - 1)
            _in_range("logit_bias", bias, -100.0, 100.0)
        for token_id in self.stop_token_ids:
            _in_range("stop_token_ids", token_id, 0, vocab_size - 1)


def _in_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    bracket = "(" if open_low else "["
    if not math.isfinite(value) or not low <= value <= high or (open_low and value == low):
        raise InvalidRequestError(
            f"{name} is {value}, but must be in {bracket}{low}, {high}]", param=name
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One sequence for an engine: token in, token out.

    `output_token_ids` are tokens that were already generated elsewhere (a replay): they count as
    output for penalties, max_tokens and seeds, and are not reported again.
    A smaller `priority` goes first; ties go by arrival. With a `thought` its tokens are counted
    and its budget kept; a `grammar` holds from after the thought (see protos/constraints.py).
    `adapter_id` names the adapter (see protos/adapters.py) that prompt and output go through; ""
    is the base model. KV is never shared between adapters (`hashing.adapter_salt`).
    `session` names what it continues; gateways route by it, workers are not told.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    sampling: SamplingParams
    output_token_ids: Sequence[int] = ()
    priority: int = 0
    cache_salt: bytes = b""
    grammar: Grammar | None = None
    thought: Thought | None = None
    adapter_id: str = ""
    session: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability, its rank (1 is the most likely) and the most likely tokens."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """What one step did for one request. `prompt_logprobs[0]` is None: nothing precedes it.

    The token that ended a request (eos or a stop id) is the last of `token_ids`, as computed; who
    makes text of them drops it. `token_ids` is empty where a request ended without computing: a
    replay of output that was complete. Prompt logprobs come once, with the first token. `began_s`
    is when computing its prompt here began, on the engine's clock; 0: it did not.

    With a finish_reason also: `num_reasoning_tokens`, the tokens of its thoughts (replayed ones
    included), and `grammar_backend`, who enforced its grammar. With ERROR, `error` says why.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    began_s: float = 0.0
    num_reasoning_tokens: int = 0
    grammar_backend: str = ""
    error: BatonError | None = None


@dataclass(slots=True, kw_only=True)
class PrefillProgress:
    """A held request's prompt KV is complete up to `num_computed_tokens` (half-open)."""

    request_id: str
    num_computed_tokens: int
    block_ids: Sequence[int]


@dataclass(slots=True, kw_only=True)
class StepOutput:
    """What one engine step produced. `num_preempted` counts requests sent back to the queue."""

    outputs: list[RequestOutput] = field(default_factory=list)
    progress: list[PrefillProgress] = field(default_factory=list)
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_preempted: int = 0
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KvEvents:
    """Changes of a worker's prefix cache, in order: `cleared` first, then removed, then stored.

    A worker that keeps blocks beyond its pool tells of both together, too: `kept` are there in some
    place now, `lost` in none any more. If it has places below host memory, `near` are in the pool
    or host memory now, and `far` in neither any more.
    """

    stored: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()
    cleared: bool = False
    kept: tuple[bytes, ...] = ()
    lost: tuple[bytes, ...] = ()
    near: tuple[bytes, ...] = ()
    far: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        changed = self.stored or self.removed or self.cleared or self.kept or self.lost
        return bool(changed or self.near or self.far)


class KvDigest(NamedTuple):
    """A prefix cache at a glance: how many blocks, and all of their short hashes XORed."""

    num_blocks: int
    xored: int


class StepSample(NamedTuple):
    """One engine step as it was measured.

    `num_pairs` counts, for the prompt tokens of the step, how many tokens each attends to.
    `num_rows` requests decoded in it, which hold `kv_tokens` together.
    """

    num_new_tokens: int
    num_pairs: int
    num_rows: int
    kv_tokens: int
    seconds: float


class TransferSample(NamedTuple):
    """One push of KV to a decode worker, from its posting until the data is there."""

    decode: str
    num_bytes: int
    seconds: float


class TierLoad(NamedTuple):
    """One place where a worker keeps KV blocks; counts are blocks since its start.

    Of `num_wanted` blocks that prompts looked for here `num_hits` were found and used.
    `num_dropped` should have been kept here, but came too late; `num_errors` counts calls that
    failed. `load_s_per_token` is the time from here to the pool; 0 where it is not known.
    `max_blocks` 0: no limit of its own.
    """

    name: str
    num_blocks: int
    max_blocks: int
    num_wanted: int
    num_hits: int
    num_stored: int
    num_dropped: int
    num_errors: int
    load_s_per_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarCounts:
    """What grammars have cost a worker since it started.

    compiled: by backend. refused: by `GrammarError.reason`, or "failed". num_hits: grammars that
    were compiled already. compile_s: sum over both. num_masks: rows that grammars masked, and
    fill_s the wall time that filling them took. num_jumped_tokens: tokens that a grammar left no
    choice about, and no step sampled.
    """

    compiled: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    num_hits: int = 0
    num_cached: int = 0
    compile_s: float = 0.0
    num_masks: int = 0
    fill_s: float = 0.0
    num_jumped_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoad:
    """A worker's own figures, reported after steps and at least once a second.

    Rates are moving averages over recent steps; 0.0 means not measured yet.
    `free_blocks` counts evictable cached blocks as free; `unplaced_blocks` are those that its
    requests still need before they can decode, wherever their prompts are computed. `itl_s` is the
    time between two tokens of a running request, with the steps that also computed other prompts.
    `steps` and `transfers` are samples since the last report; `max_step_tokens` and
    `kv_bytes_per_token` are facts of the worker, 0 where it does not say. `kv_digest` is of its
    prefix cache as of the events before.
    `tiers`: the pool and what is below it, nearest first; empty without such tiers.
    `grammars` is None until it has seen one. `num_preemptions` and `num_pushed_bytes` (KV written
    to other workers) count from the worker's start, as do `num_pulled_tokens`, which came from
    other workers' prefix caches, and `num_failed_pulls`, which brought none.
    """

    num_running: int = 0
    num_waiting: int = 0
    queued_prefill_tokens: int = 0
    running_kv_tokens: int = 0
    total_blocks: int = 0
    free_blocks: int = 0
    prefill_tokens_per_s: float = 0.0
    decode_step_s: float = 0.0
    draining: bool = False
    itl_s: float = 0.0
    steps: tuple[StepSample, ...] = ()
    transfers: tuple[TransferSample, ...] = ()
    max_step_tokens: int = 0
    kv_bytes_per_token: int = 0
    kv_digest: KvDigest | None = None
    tiers: tuple[TierLoad, ...] = ()
    unplaced_blocks: int = 0
    grammars: GrammarCounts | None = None
    num_preemptions: int = 0
    num_pushed_bytes: int = 0
    num_pulled_tokens: int = 0
    num_failed_pulls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One worker as the directory knows it. A restart is a new incarnation."""

    worker_id: str
    incarnation: str
    role: Role
    # Of its streams (protos/stream.py), where gateways and decode workers connect.
    address: str
    model: str
    model_digest: str = ""
    # What it shares a switch with; "" where nobody says.
    rack: str = ""
    # Of its gRPC service: profiles and health.
    grpc_address: str = ""
