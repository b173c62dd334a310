"""Adapters block by block in plain torch; fast enough to serve on a CPU.

What is shrunk is [tokens with an adapter, slices * max_rank] in the dtype of the layer, to which
the kernels round it too, in the order of `LoraBatch.order`: there a block's tokens are neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from baton.kernels.lora import LoraBatch, LoraWeights


def shrink_reference(x: Tensor, lora: LoraWeights, batch: LoraBatch) -> Tensor:
    """x A^T of each token's adapter; arguments as the operator's."""
    tokens, slices = _tokens(batch), len(lora.heights)
    rows = x[tokens]
    shrunk = x.new_empty((tokens.shape[0], slices * lora.max_rank))
    for slot, block in _blocks(lora, batch):
        room = int(lora.rooms[slot])
        start = lora.a_offset * room
        a = lora.pool[slot, start : start + slices * room * lora.width]
        shrunk[block, : slices * room] = rows[block] @ a.view(-1, lora.width).t()
    return shrunk


def gather_reference(token_ids: Tensor, lora: LoraWeights, batch: LoraBatch) -> Tensor:
    """A's row of each token's id, in its adapter."""
    tokens = _tokens(batch)
    ids = token_ids[tokens].long()
    shrunk = lora.pool.new_empty((tokens.shape[0], lora.max_rank))
    for slot, block in _blocks(lora, batch):
        room = int(lora.rooms[slot])
        start = lora.a_offset * room
        a = lora.pool[slot, start : start + lora.width * room].view(lora.width, room)
        shrunk[block, :room] = a[ids[block]]
    return shrunk


def expand_reference(out: Tensor, shrunk: Tensor, lora: LoraWeights, batch: LoraBatch) -> Tensor:
    """Adds `shrunk B^T` to out [num_tokens, features], slice by slice; returns out."""
    tokens = _tokens(batch)
    rows = out[tokens]
    for slot, block in _blocks(lora, batch):
        room, first = int(lora.rooms[slot]), 0
        start = lora.b_offset * room
        b = lora.pool[slot, start : start + sum(lora.heights) * room].view(-1, room)
        for i, height in enumerate(lora.heights):
            if int(lora.ranks[i, slot]):
                low = shrunk[block, i * room : (i + 1) * room]
                rows[block, first : first + height].addmm_(low, b[first : first + height].t())
            first += height
    out[tokens] = rows
    return out


def _tokens(batch: LoraBatch) -> Tensor:
    """Those with an adapter."""
    blocks = batch.blocks[: int(batch.counts[0]), 2]
    return batch.order[: int(blocks.sum())].long()


def _blocks(lora: LoraWeights, batch: LoraBatch) -> Iterator[tuple[int, slice]]:
    """Slot of each block whose adapter changes this projection, and its places in the order."""
    for slot, first, count in batch.blocks[: int(batch.counts[0])].tolist():
        if int(lora.ranks[:, slot].max()):
            yield slot, slice(first, first + count)
