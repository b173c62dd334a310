"""Adapters block by block in plain torch; fast enough to serve on a CPU.

What is shrunk is float32 [num_tokens, slices * max_rank], of which each token has its adapter's
part; the kernels round it to the dtype of the layer before they expand it, and so does this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from baton.kernels.lora import LoraBatch, LoraWeights


def shrink_reference(x: Tensor, lora: LoraWeights, batch: LoraBatch) -> Tensor:
    """x A^T of each token's adapter; arguments as the operator's."""
    slices = len(lora.heights)
    shrunk = x.new_empty((x.shape[0], slices * lora.max_rank), dtype=torch.float32)
    for slot, tokens in _blocks(batch):
        room = int(lora.rooms[slot])
        start = lora.a_offset * room
        a = lora.pool[slot, start : start + slices * room * lora.width]
        shrunk[tokens, : slices * room] = (x[tokens] @ a.view(-1, lora.width).t()).float()
    return shrunk


def gather_reference(token_ids: Tensor, lora: LoraWeights, batch: LoraBatch) -> Tensor:
    """A's row of each token's id, in its adapter."""
    shrunk = lora.pool.new_empty((token_ids.shape[0], lora.max_rank), dtype=torch.float32)
    for slot, tokens in _blocks(batch):
        room = int(lora.rooms[slot])
        start = lora.a_offset * room
        a = lora.pool[slot, start : start + lora.width * room].view(lora.width, room)
        shrunk[tokens, :room] = a[token_ids[tokens].long()].float()
    return shrunk


def expand_reference(out: Tensor, shrunk: Tensor, lora: LoraWeights, batch: LoraBatch) -> Tensor:
    """Adds `shrunk B^T` to out [num_tokens, features], slice by slice; returns out."""
    for slot, tokens in _blocks(batch):
        room = int(lora.rooms[slot])
        start = lora.b_offset * room
        b = lora.pool[slot, start : start + sum(lora.heights) * room].view(-1, room)
        first = 0
        for i, height in enumerate(lora.heights):
            if int(lora.ranks[i, slot]):
                part = shrunk[tokens, i * room : (i + 1) * room].to(out.dtype)
                columns = slice(first, first + height)
                delta = part.float() @ b[columns].float().t()
                out[tokens, columns] = (out[tokens, columns].float() + delta).to(out.dtype)
            first += height
    return out


def _blocks(batch: LoraBatch) -> Iterator[tuple[int, Tensor]]:
    """Slot and tokens of each block that has an adapter."""
    order = batch.order.long()
    for slot, first, count in batch.blocks[: int(batch.counts[0])].tolist():
        yield slot, order[first : first + count]
