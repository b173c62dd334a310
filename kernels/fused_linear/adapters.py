# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""What adapters add to a product, by the product's own program before it writes its tile.

The tokens have been shrunk by another kernel, which ran beside this one's long loop over the
weights, so that all an adapter costs here is a short product for each of the batch's distinct ones:
no tile is written and read again, and no launch follows.
"""

from dataclasses import dataclass
from typing import Final

import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """Of a product's tokens; what the fields hold is said where the LoRA operators define them.

    shrunk: float32 [splits, num_tokens, slices, max_rank].
    """

    shrunk: Tensor
    pool: Tensor
    rooms: Tensor
    ranks: Tensor
    slots: Tensor
    b_offset: int
    heights: tuple[int, ...]

    def fit(self, features: int, num_tokens: int, tile: int) -> bool:
        """Whether tiles of so many features are of one slice each, and ranks short enough."""
        whole = all(height % tile == 0 for height in self.heights) or len(self.heights) == 1
        ranks = self.shrunk.shape[3]
        return whole and sum(self.heights) == features and num_tokens > 1 and ranks <= MAX_RANKS


# Ranks of a tile: B's rows and the tokens' have to fit beside the product's sums.
MAX_RANKS: Final = 64


@triton.jit
def slot_start(p_pool, p_rooms, slot, slot_stride, offset):
    """Where a projection's A or B begins in a slot, and the slot's room for ranks."""
    # the pool rounds ranks up, which lets loads be wide
    room = tl.multiple_of(tl.load(p_rooms + slot), 8)
    place = slot.to(tl.int64) * slot_stride + offset.to(tl.int64) * room
    return p_pool + tl.multiple_of(place, 16), room


@triton.jit
def slice_room(p_rooms, p_ranks, slot, i_slice, num_slots):
    """The slice's ranks as they are stored, a multiple of 8; 0 where it is not changed."""
    rank = tl.load(p_ranks + i_slice * num_slots + slot)
    return tl.multiple_of(tl.where(rank > 0, tl.load(p_rooms + slot), 0), 8)


@triton.jit
def _rows(
    p_pool, p_rooms, p_ranks, p_distinct, i, count, slot_stride, b_offset, num_slots, i_slice,
    o_row, m_n, BR: tl.constexpr,
):  # fmt: skip
    """The i-th distinct slot, and its rows o_row of B: [BN, BR]; nothing past the last slot."""
    slot = tl.load(p_distinct + tl.minimum(i, count - 1))
    p_b, room = slot_start(p_pool, p_rooms, slot, slot_stride, b_offset)
    last = tl.where(i < count, slice_room(p_rooms, p_ranks, slot, i_slice, num_slots), 0)
    last = tl.multiple_of(last, 8)
    o_r = tl.arange(0, BR)
    # what an adapter has no rank for is neither read nor multiplied
    mask = m_n[:, None] & (o_r < last)[None, :]
    p_row = p_b + o_row.to(tl.int64)[:, None] * room
    return slot, tl.load(p_row + o_r[None, :], mask=mask, other=0.0)


@triton.jit
def add_adapters(
    b_acc, p_shrunk, p_pool, p_rooms, p_ranks, p_slots, first, step, slot_stride, b_offset,
    num_slots, i_slice, o_row, m_n, m,
    SLICES: tl.constexpr, RANKS: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """b_acc [BN, BM] plus what every step-th distinct adapter, from the first-th on, makes of its
    own among the m tokens; rows o_row of B, read an adapter ahead."""
    o_m, o_r = tl.arange(0, BM), tl.arange(0, BR)
    b_token_slot = tl.load(p_slots + o_m, mask=o_m < m, other=-1)
    count, p_distinct = tl.load(p_slots + m), p_slots + m + 1
    slot, b_b = _rows(
        p_pool, p_rooms, p_ranks, p_distinct, first, count, slot_stride, b_offset, num_slots,
        i_slice, o_row, m_n, BR,
    )  # fmt: skip
    # not in stages: their room in shared memory is the long loop's
    for i in tl.range(first, count, step, num_stages=1):
        next_slot, b_next = _rows(
            p_pool, p_rooms, p_ranks, p_distinct, i + step, count, slot_stride, b_offset, num_slots,
            i_slice, o_row, m_n, BR,
        )  # fmt: skip
        last = slice_room(p_rooms, p_ranks, slot, i_slice, num_slots)
        mask = (b_token_slot == slot)[:, None] & (o_r < last)[None, :]
        b_shrunk = tl.zeros([BM, BR], dtype=tl.float32)
        for i_part in tl.static_range(PARTS):
            o_token = ((i_part * m.to(tl.int64) + o_m) * SLICES + i_slice) * RANKS
            # made while this kernel ran: past the first-level cache
            p_part = p_shrunk + o_token[:, None] + o_r[None, :]
            b_shrunk += tl.load(p_part, mask=mask, other=0.0, cache_modifier=".cg")
        b_t = tl.trans(b_shrunk.to(b_b.dtype))
        b_acc = tl.dot(b_b, b_t, b_acc, input_precision=PRECISION)
        slot, b_b = next_slot, b_next
    return b_acc
