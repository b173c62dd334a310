"""Which tokens of a step go through which adapter, worked out on the host for the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baton.engine.transfer import Upload, filled
from baton.kernels.lora import LoraBatch, block_tokens, few_adapters

Ints = npt.NDArray[np.int64]
# Of LoraArrays in an upload.
NUM_ARRAYS: Final = 4


@dataclass(frozen=True, slots=True)
class LoraArrays:
    """A LoraBatch on the host, its shapes a function of the number of tokens and of few alone."""

    order: npt.NDArray[np.int32]
    blocks: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int32]

    def add_to(self, upload: Upload) -> int:
        """Queues all four; returns the first one's place, the others follow."""
        place = upload.add(self.order)
        upload.add(self.blocks)
        upload.add(self.counts)
        upload.add(self.slots)
        return place


def plan_adapters(slots: Ints, num_slots: int, tokens_a_block: int, *, few: bool) -> LoraArrays:
    """Groups tokens by slot. slots: [num_tokens], -1 where a token has no adapter."""
    num_tokens = len(slots)
    keys = np.where(slots < 0, num_slots, slots)
    order = np.argsort(keys, kind="stable")
    groups, firsts, counts = np.unique(keys[order], return_index=True, return_counts=True)
    num_blocks = -(-counts // tokens_a_block)
    # The blocks of all groups, one after the other, and which of its group's each one is.
    of_group = np.repeat(np.arange(len(groups)), num_blocks)
    nth = np.arange(len(of_group)) - np.repeat(num_blocks.cumsum() - num_blocks, num_blocks)
    most = min(num_tokens, num_tokens // tokens_a_block + num_slots + 1)
    blocks = np.zeros((most, 3), dtype=np.int32)
    taken = blocks[: len(of_group)]
    taken[:, 0] = np.where(groups == num_slots, -1, groups)[of_group]
    taken[:, 1] = firsts[of_group] + nth * tokens_a_block
    taken[:, 2] = np.minimum(counts[of_group] - nth * tokens_a_block, tokens_a_block)
    with_adapter = int(num_blocks[groups < num_slots].sum())
    distinct = groups[groups < num_slots]
    by_token = np.zeros(2 * num_tokens + 1 if few else 0, dtype=np.int32)
    if few:
        by_token[:num_tokens] = slots
        by_token[num_tokens] = len(distinct)
        by_token[num_tokens + 1 :][: len(distinct)] = distinct
    return LoraArrays(
        order.astype(np.int32),
        blocks,
        np.array([with_adapter, len(of_group)], dtype=np.int32),
        by_token,
    )


class StepAdapters:
    """Slots of the rows of a batch, and plans over them. `num_slots` 0: there are none."""

    def __init__(self, max_running: int, num_slots: int, device: torch.device) -> None:
        self._slots = np.full(max_running, -1, dtype=np.int64)
        self._num_slots = num_slots
        self._device = device

    def write(self, row: int, slot: int) -> None:
        self._slots[row] = slot

    def of(self, rows: Ints) -> Ints | None:
        """The rows' slots, or None if none of them has an adapter."""
        if not self._num_slots:
            return None
        found = self._slots[rows]
        return found if found.max(initial=-1) >= 0 else None

    def plan(self, slots: Ints, num_tokens: int, upload: Upload, *, few: bool | None = None) -> int:
        """Queues the plan of these tokens, padded to `num_tokens` by some without an adapter.

        few: None: as `few_adapters` says.
        """
        padded = filled(slots, num_tokens, -1)
        tokens_a_block = block_tokens(num_tokens, self._device)
        few = few_adapters(padded) if few is None else few
        return plan_adapters(padded, self._num_slots, tokens_a_block, few=few).add_to(upload)

    def batch(self, sent: Sequence[Tensor], first: int = 0) -> LoraBatch:
        """What was queued, on the device, from place `first` on."""
        order, blocks, counts, slots = sent[first : first + NUM_ARRAYS]
        tokens_a_block = block_tokens(order.shape[0], self._device)
        return LoraBatch(
            order=order, blocks=blocks, counts=counts, slots=slots, block_tokens=tokens_a_block
        )

    def uniform(self, slot: int, num_tokens: int) -> LoraBatch | None:
        """Of tokens that all have one slot; None for none."""
        if slot < 0:
            return None
        upload = Upload(self._device)
        self.plan(np.full(num_tokens, slot), num_tokens, upload)
        return self.batch(upload.send())
