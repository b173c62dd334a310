"""The seam between scheduling and computing: what a step computes, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from baton.engine.adapters.memory import AdapterMemory
from baton.engine.grammar.statistics import MaskStatistics
from baton.engine.request import Request, RequestState
from baton.engine.tiers.ranks import TierRank
from baton.kvtransfer.group import RankPool
from baton.kvtransfer.layout import KVLayout
from baton.protos.types import PrefillProgress, TokenLogprob


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Facts about a loaded model. Equal digests (of configuration and weights) mean equal KV."""

    name: str
    digest: str
    architecture: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    num_layers: int
    dtype: str
    device: str


@dataclass(slots=True, kw_only=True)
class ScheduledRow:
    """One request's share of a step.

    Tokens [start, start + num_new_tokens) of the request are computed, `start` being its
    `num_computed_tokens` when the row is made.
    samples: the share reaches the last known token, so the next token is sampled.
    decodes: the request was decoding by then; otherwise the share is part of a prompt.
    given: of a decode, its first tokens, if no step sampled them: the runner does not know them.
    """

    request: Request
    num_new_tokens: int
    samples: bool
    start: int = field(init=False)
    decodes: bool = field(init=False)
    given: Sequence[int] = field(init=False, default=())

    def __post_init__(self) -> None:
        request = self.request
        self.start = request.num_computed_tokens
        self.decodes = request.state is RequestState.DECODING
        if self.decodes and self.start < request.given_until:
            self.given = request.token_ids[self.start : min(self.end, request.given_until)]

    @property
    def end(self) -> int:
        return self.start + self.num_new_tokens

    @property
    def progress(self) -> PrefillProgress:
        """How far its request is with this share."""
        return PrefillProgress(
            request_id=self.request.request_id,
            num_computed_tokens=self.end,
            block_ids=self.request.block_ids,
        )


@dataclass(slots=True, kw_only=True)
class RunResult:
    """What a step computed.

    sampled, logprobs: one entry for each row with `samples`, in the order of the rows; a logprob is
        None for rows that did not ask (`sampling.logprobs is None`).
    prompt_logprobs: by request id, for rows whose request has `needs_prompt_logprobs`. A share that
        computes positions [a, b) gives the log-probabilities of the prompt tokens
        [a + 1, min(b + 1, num_prompt_tokens)), in order; an empty list may be left out.
    """

    sampled: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    prompt_logprobs: dict[str, list[TokenLogprob]] = field(default_factory=dict)


class BlockStore(Protocol):
    """The memory behind block ids; `tensor` [num_blocks, layers, 2, kv_heads, block_size, dim]."""

    @property
    def tensor(self) -> torch.Tensor: ...
    @property
    def layout(self) -> KVLayout: ...
    @property
    def num_blocks(self) -> int: ...


class RunningStep(Protocol):
    """A step under way on the device; `wait` blocks until it is done, and may be called again."""

    def wait(self) -> RunResult: ...


class BatchRunner(Protocol):
    """Computes steps; `engine.runner.Runner` is the real one.

    add_row: the request entered the batch at `request.slot` with its blocks and tokens known (a
        preempted or replayed one with output tokens); sampling state is written for that row.
    remove_row: it left the batch; `request.slot` is still set. Nothing else is freed by it.
    launch: starts to compute every row, and to sample where asked. Steps run in the order of their
        launches; a row may be launched before the token that it reads is known to the host, when
        the step that samples it was launched before. What a row says of its request is read before
        launch returns. Does not change the requests.
    overlaps: whether steps run beside the host, so that launching the next one early pays.
    other_pools: of a tensor-parallel model's ranks other than 0; `pool` is rank 0's.
    other_tiers: where these ranks keep blocks below their pools.
    adapters: reads and moves adapters; None: it can have none.
    watch: calls `on_failure` once, from any thread, if it fails between steps.
    """

    @property
    def model(self) -> ModelInfo: ...
    @property
    def pool(self) -> BlockStore: ...
    @property
    def other_pools(self) -> Sequence[RankPool]: ...
    @property
    def other_tiers(self) -> Sequence[TierRank]: ...
    @property
    def adapters(self) -> AdapterMemory | None: ...

    def add_row(self, request: Request) -> None: ...
    def remove_row(self, request: Request) -> None: ...
    @property
    def overlaps(self) -> bool: ...

    def launch(self, rows: Sequence[ScheduledRow]) -> RunningStep: ...
    def watch(self, on_failure: Callable[[BaseException], None]) -> None: ...
    def mask_statistics(self) -> MaskStatistics: ...
    def close(self) -> None: ...
