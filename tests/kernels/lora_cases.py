"""Pools of random adapters and batches of tokens over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baton.kernels.lora import LoraBatch, LoraWeights


def pool_of(
    heights: Sequence[int],
    width: int,
    ranks: Sequence[Sequence[int]],
    dtype: torch.dtype,
    device: str,
    *,
    max_rank: int = 16,
    embedding: bool = False,
) -> tuple[LoraWeights, list[Tensor]]:
    """The pool, and for each slot B A of all slices together, float32 [sum(heights), width].

    ranks[slot][slice]: 0 leaves the slice unchanged. What nobody should read is NaN.
    """
    a_offset, slices = 16, len(heights)
    b_offset = -(-(a_offset + slices * width) // 16) * 16
    elements = -(-(b_offset + sum(heights)) * max_rank // 16) * 16
    pool = torch.full((len(ranks), elements), torch.nan)
    rooms = torch.tensor([-(-max([*row, 1]) // 8) * 8 for row in ranks], dtype=torch.int32)
    deltas = []
    for slot, row in enumerate(ranks):
        room = int(rooms[slot])
        a = torch.zeros(slices, room, width)
        b = [torch.zeros(height, room) for height in heights]
        for i, rank in enumerate(row):
            a[i, :rank] = torch.randn(rank, width) * width**-0.5
            b[i][:, :rank] = torch.randn(heights[i], rank)
        a, b = a.to(dtype).float(), [part.to(dtype).float() for part in b]
        deltas.append(torch.cat([b[i] @ a[i] for i in range(slices)]).to(device))
        stored = a[0].t() if embedding else a
        for offset, values in ((a_offset, stored), (b_offset, torch.cat(b))):
            flat = values.reshape(-1)
            pool[slot, offset * room : offset * room + flat.numel()] = flat
    weights = LoraWeights(
        pool=pool.to(device, dtype),
        rooms=rooms.to(device),
        ranks=torch.tensor(ranks, dtype=torch.int32).t().contiguous().to(device),
        heights=tuple(heights),
        width=width,
        a_offset=a_offset,
        b_offset=b_offset,
        max_rank=max_rank,
    )
    return weights, deltas


def batch_of(
    slots: Sequence[int], block_tokens: int, device: str, *, few: bool = True
) -> LoraBatch:
    """Tokens of these slots, -1 for none, with a few blocks that are not there."""
    order, blocks = [], []
    groups = sorted(set(slots), key=lambda slot: (slot < 0, slot))
    for slot in groups:
        tokens = [i for i, s in enumerate(slots) if s == slot]
        for at in range(0, len(tokens), block_tokens):
            part = tokens[at : at + block_tokens]
            blocks.append((slot, len(order), len(part)))
            order += part
    counts = [sum(slot >= 0 for slot, *_ in blocks), len(blocks)]
    blocks += [(99, 99, 99)] * 2
    distinct = [slot for slot in groups if slot >= 0]
    # what is past the distinct ones is nobody's
    known = [*slots, len(distinct), *distinct, *[99] * (len(slots) - len(distinct))]
    return LoraBatch(
        order=torch.tensor(order, dtype=torch.int32, device=device),
        blocks=torch.tensor(blocks, dtype=torch.int32, device=device),
        counts=torch.tensor(counts, dtype=torch.int32, device=device),
        slots=torch.tensor(known if few else [], dtype=torch.int32, device=device),
        block_tokens=block_tokens,
    )
