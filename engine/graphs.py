"""Steps of a few shapes, captured once as CUDA graphs and replayed: no launch costs the host.

A step is padded up to the next shape of a ladder. Its inputs are copied to where the graph reads
them, and its output lies where the graph leaves it until the next replay. Where nothing can be
captured (CPU) the padded step runs as it is, so that tests see what padding does.
"""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

# Rows of a step with prompts: of a few, and of a full batch.
FEW_ROWS: Final = 8
_MIXED_TOKENS: Final = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048)
# Threads that compile. The vendor's libraries keep work space for each.
_COMPILING: Final = 4
# What a step of the largest shape sends, with room for new blocks and sampling parameters.
STAGING_BYTES: Final = 4 << 20


class Adapted(IntEnum):
    """How many distinct adapters a step's rows have. FEW: in steps of few decodes alone."""

    NONE = 0
    FEW = 1
    ANY = 2


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A shape to pad to. A step of decodes alone has as many tokens as rows.

    adapters: of all rows. Steps without have graphs of their own, which know of none.
    """

    num_tokens: int
    num_rows: int
    adapters: Adapted = Adapted.NONE

    @property
    def decodes(self) -> bool:
        return self.num_tokens == self.num_rows


def decode_buckets(max_rows: int) -> list[Bucket]:
    """1, 2, 4, 8, then steps that pad by an eighth at most from 64 on."""
    sizes = {1, 2, 4, *range(8, 129, 8), *range(144, 257, 16), *range(288, 1025, 32), max_rows}
    return [Bucket(size, size) for size in sorted(sizes) if 0 < size <= max_rows]


def with_adapters(buckets: Sequence[Bucket]) -> list[Bucket]:
    """The same for steps with adapters."""
    few = [bucket for bucket in buckets if bucket.decodes and 1 < bucket.num_tokens <= 64]
    return [replace(bucket, adapters=Adapted.FEW) for bucket in few] + [
        replace(bucket, adapters=Adapted.ANY) for bucket in buckets
    ]


def mixed_buckets(max_tokens: int, max_rows: int) -> list[Bucket]:
    """Token counts by few rows, and by as many as there may be."""
    levels = sorted({min(FEW_ROWS, max_rows), max_rows})
    return [
        Bucket(tokens, rows)
        for tokens in _MIXED_TOKENS
        if tokens <= max_tokens
        for rows in levels
        if rows < tokens
    ]


class StepResult(NamedTuple):
    """Of a step of decodes logits [rows, vocab], of another hidden states [tokens, hidden].

    chosen: int64 [rows], each row's most likely token, where the graph drew it.
    """

    states: Tensor
    chosen: Tensor | None = None


class StepGraphs:
    """Graphs by bucket.

    body: (bucket, inputs) to the step's output; `inputs` is as the caller's `draft` made them.
    """

    def __init__(
        self,
        body: Callable[[Bucket, list[Tensor]], StepResult],
        buckets: Iterable[Bucket],
        device: torch.device,
    ) -> None:
        self._body = body
        ordered = sorted(buckets)
        self._decodes = {
            adapters: [b for b in ordered if b.decodes and b.adapters == adapters]
            for adapters in Adapted
        }
        self._mixed = [bucket for bucket in ordered if not bucket.decodes]
        self._buckets = ordered
        self._device = device
        self._graphs: dict[Bucket, tuple[torch.cuda.CUDAGraph, StepResult]] = {}
        self.staging: Tensor | None = None
        if device.type == "cuda" and ordered:
            self.staging = torch.empty(STAGING_BYTES, dtype=torch.uint8, device=device)

    def fit(
        self, num_rows: int, num_tokens: int, *, adapters: Adapted = Adapted.NONE
    ) -> Bucket | None:
        """The smallest bucket that holds such a step, or None."""
        if num_rows == num_tokens:
            decodes = self._decodes[adapters]
            at = bisect_left(decodes, Bucket(num_tokens, num_rows, adapters))
            return decodes[at] if at < len(decodes) else None
        for bucket in self._mixed:
            if (
                bucket.num_tokens >= num_tokens
                and bucket.num_rows >= num_rows
                and bucket.adapters == adapters
            ):
                return bucket
        return None

    def run(self, bucket: Bucket, inputs: Callable[[], list[Tensor]]) -> StepResult:
        """The step's output, valid until the next one is launched.

        inputs: as the body takes them; asked for only where nothing was captured, since a graph
            finds them in `staging`.
        """
        captured = self._graphs.get(bucket)
        if captured is None:
            return self._body(bucket, inputs())
        graph, output = captured
        graph.replay()
        return output

    @torch.inference_mode()
    def capture(self, draft: Callable[[Bucket, Tensor | None], list[Tensor]]) -> None:
        """Captures every bucket, the largest first so that the others fit into its memory.

        draft: harmless inputs of a bucket, in the given memory or new. Every shape runs once before
        any is captured: kernels are compiled then, and libraries allocate what they keep.
        """
        if self._device.type != "cuda":
            return
        buckets: Sequence[Bucket] = self._buckets[::-1]
        self._compile(buckets, draft)
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        # A collection in the middle of a capture may free device memory, which ends it.
        gc.collect()
        gc.disable()
        try:
            for bucket in buckets:
                inputs = draft(bucket, self.staging)
                torch.cuda.synchronize(self._device)
                self._graphs[bucket] = self._captured(bucket, inputs, pool, stream)
        finally:
            gc.enable()
        torch.cuda.synchronize(self._device)

    def _compile(
        self, buckets: Sequence[Bucket], draft: Callable[[Bucket, Tensor | None], list[Tensor]]
    ) -> None:
        """Runs every bucket: the first alone, for the kernels that all have, then side by side."""

        @torch.inference_mode()
        def run(bucket: Bucket) -> None:
            with torch.cuda.device(self._device):
                self._body(bucket, draft(bucket, None))

        for bucket in buckets[:1]:
            run(bucket)
        with ThreadPoolExecutor(_COMPILING, thread_name_prefix="compile") as threads:
            list(threads.map(run, buckets[1:]))
        torch.cuda.synchronize(self._device)

    def _captured(
        self,
        bucket: Bucket,
        inputs: list[Tensor],
        pool: Any,
        stream: torch.cuda.Stream,
    ) -> tuple[torch.cuda.CUDAGraph, StepResult]:
        """By hand: torch.cuda.graph would empty the caches anew for each, a second in ten."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                output = self._body(bucket, inputs)
            finally:
                graph.capture_end()
        return graph, output
