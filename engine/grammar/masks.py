"""A step's token masks: filled on threads while the device computes, in one bitmask."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baton.engine.grammar.backend import Bitmask, Filler
from baton.engine.grammar.constraint import Constraint, Wanted
from baton.engine.grammar.statistics import MaskStatistics


class TokenMasks(NamedTuple):
    """rows: int64 [n], of a step's sampled rows. bitmask: int32 [n, ceil(vocab / 32)]; on the
    device."""

    rows: Tensor
    bitmask: Tensor


class PendingMasks:
    """Masks that are being filled."""

    def __init__(self, rows: npt.NDArray[np.int64], bitmask: Tensor, work: Future[None]) -> None:
        self._rows = rows
        self._bitmask = bitmask
        self._work = work

    def wait(self, device: torch.device) -> TokenMasks:
        """Blocks until they are filled, then starts their way to the device."""
        self._work.result()
        rows = torch.from_numpy(self._rows)
        if device.type == "cpu":
            return TokenMasks(rows, self._bitmask)
        bitmask = self._bitmask.to(device, non_blocking=True)
        return TokenMasks(rows.pin_memory().to(device, non_blocking=True), bitmask)


class MaskFiller:
    """Fills bitmasks of `vocab_size` tokens. The libraries bring their own threads for the rows;
    the one here drives them, so that the engine's thread can go on launching."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._num_words = -(-vocab_size // 32)
        self._pinned = device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._num_filled = 0
        self._fill_s = 0.0

    def start(self, constraints: Sequence[tuple[int, Constraint]]) -> PendingMasks | None:
        """Begins to fill the masks of (sampled row, constraint) pairs; None if no row needs one."""
        needed = [
            (row, constraint, wanted)
            for row, constraint in constraints
            if (wanted := constraint.wanted()) is not Wanted.NOTHING
        ]
        if not needed:
            return None
        shape = (len(needed), self._num_words)
        bitmask = torch.empty(shape, dtype=torch.int32, pin_memory=self._pinned)
        rows = np.array([row for row, _, _ in needed], dtype=np.int64)
        pairs = [(constraint, wanted) for _, constraint, wanted in needed]
        return PendingMasks(rows, bitmask, self._thread.submit(self._fill, pairs, bitmask.numpy()))

    def statistics(self) -> MaskStatistics:
        return MaskStatistics(num_filled=self._num_filled, fill_s=self._fill_s)

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    def _fill(self, pairs: Sequence[tuple[Constraint, Wanted]], bitmask: Bitmask) -> None:
        started_s = time.perf_counter()
        by_filler: dict[Filler, list[int]] = defaultdict(list)
        for index, (constraint, wanted) in enumerate(pairs):
            if wanted is Wanted.GRAMMAR and constraint.grammar is not None:
                by_filler[constraint.grammar.filler].append(index)
            else:
                constraint.write(bitmask[index], wanted)
        for filler, indices in by_filler.items():
            filler.fill([pairs[index][0].native for index in indices], bitmask, indices)
            filled = bitmask if len(indices) == len(bitmask) else bitmask[indices]
            num_allowed = np.bitwise_count(filled.view(np.uint32)).sum(axis=1, dtype=np.int64)
            for index, count in zip(indices, num_allowed.tolist(), strict=True):
                pairs[index][0].settle(bitmask[index], count)
            self._num_filled += len(indices)
        self._fill_s += time.perf_counter() - started_s
