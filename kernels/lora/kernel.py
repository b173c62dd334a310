# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Shrink and expand, each program a tile of the projection for every so-manieth block of tokens.

How many blocks there are is read on the device: a captured graph serves any mix of adapters, and
programs without a block end at once. A block's tokens are scattered: rows are gathered by index.
"""

import triton
import triton.language as tl

from baton.kernels.dependent_launch import prefetch, wait_for_earlier
from baton.kernels.fused_linear.adapters import slice_room, slot_start

# where a step's arrays lie changes from step to step: one kernel for all places
_PLAN = ["p_order", "p_blocks", "p_counts"]
# Elements of 2 bytes in a cache line.
LINE: tl.constexpr = tl.constexpr(64)


@triton.jit
def _block(p_blocks, p_order, i_block, BM: tl.constexpr):
    """Slot of the block, its tokens [BM] and which of them there are."""
    slot = tl.load(p_blocks + 3 * i_block)
    first = tl.load(p_blocks + 3 * i_block + 1)
    o_m = tl.arange(0, BM)
    m_m = o_m < tl.load(p_blocks + 3 * i_block + 2)
    o_token = tl.load(p_order + first + o_m, mask=m_m, other=0).to(tl.int64)
    return slot, o_token, m_m


@triton.jit(do_not_specialize=["num_tokens", "num_slots"], do_not_specialize_on_alignment=_PLAN)
def shrink_kernel(
    p_x, p_pool, p_rooms, p_ranks, p_order, p_blocks, p_counts, p_shrunk,
    slot_stride, a_offset, width, num_slots, num_tokens,
    SLICES: tl.constexpr, MAX_RANK: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """x A^T in parts of the width; grid [splits * slices * tiles of rank, blocks at a time]."""
    i_part = tl.program_id(0)
    i_split = i_part % SPLITS
    i_slice = i_part // SPLITS % SLICES
    o_r = i_part // (SPLITS * SLICES) * BR + tl.arange(0, BR)
    # whole tiles to each part, the last one has what is left
    part = tl.cdiv(tl.cdiv(width, BK), SPLITS) * BK
    start, end = i_split * part, tl.minimum((i_split + 1) * part, width)
    if DEPENDENT and tl.program_id(1) < tl.load(p_counts):
        # the first block's plan and weights are at hand when x is
        slot, _, _ = _block(p_blocks, p_order, tl.program_id(1), BM)
        p_a, room = slot_start(p_pool, p_rooms, slot, slot_stride, a_offset)
        o_row = i_slice * room + tl.minimum(o_r, room - 1)
        o_line = tl.minimum(start + tl.arange(0, BK // LINE) * LINE, width - 1)
        prefetch(p_a + o_row.to(tl.int64)[:, None] * width + o_line[None, :], DEPENDENT)
    # all programs wait, those without a block too: whoever comes next relies on it
    wait_for_earlier(DEPENDENT)
    for i_block in range(tl.program_id(1), tl.load(p_counts), tl.num_programs(1)):
        slot, o_token, m_m = _block(p_blocks, p_order, i_block, BM)
        rank = slice_room(p_rooms, p_ranks, slot, i_slice, num_slots)
        if i_part // (SPLITS * SLICES) * BR < rank:
            m_r = o_r < rank
            p_a, room = slot_start(p_pool, p_rooms, slot, slot_stride, a_offset)
            p_row = p_a + (i_slice * room + o_r).to(tl.int64)[:, None] * width
            p_token = p_x + o_token[:, None] * width
            b_acc = tl.zeros([BM, BR], dtype=tl.float32)
            for i_k in range(start, end, BK):
                o_k = i_k + tl.arange(0, BK)
                m_k = o_k < end
                m_x, m_a = m_m[:, None] & m_k[None, :], m_r[:, None] & m_k[None, :]
                b_x = tl.load(p_token + o_k[None, :], mask=m_x, other=0.0)  # [BM, BK]
                b_a = tl.load(p_row + o_k[None, :], mask=m_a, other=0.0)  # [BR, BK]
                b_acc = tl.dot(b_x, tl.trans(b_a), b_acc, input_precision=PRECISION)
            o_row = (i_split.to(tl.int64) * num_tokens + o_token) * SLICES + i_slice
            p_out = p_shrunk + o_row[:, None] * MAX_RANK + o_r[None, :]
            tl.store(p_out, b_acc, mask=m_m[:, None] & m_r[None, :])


@triton.jit(do_not_specialize=["num_slots"], do_not_specialize_on_alignment=_PLAN)
def gather_kernel(
    p_ids, p_pool, p_rooms, p_ranks, p_order, p_blocks, p_counts, p_shrunk,
    slot_stride, a_offset, num_slots,
    MAX_RANK: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """An embedding's A, a row for each token's id; grid [tiles of rank, blocks at a time]."""
    o_r = tl.program_id(0) * BR + tl.arange(0, BR)
    for i_block in range(tl.program_id(1), tl.load(p_counts), tl.num_programs(1)):
        slot, o_token, m_m = _block(p_blocks, p_order, i_block, BM)
        m_out = m_m[:, None] & (o_r < slice_room(p_rooms, p_ranks, slot, 0, num_slots))[None, :]
        p_a, room = slot_start(p_pool, p_rooms, slot, slot_stride, a_offset)
        o_id = tl.load(p_ids + o_token, mask=m_m, other=0).to(tl.int64)
        b_a = tl.load(p_a + o_id[:, None] * room + o_r[None, :], mask=m_out, other=0.0)  # [BM, BR]
        p_out = p_shrunk + o_token[:, None] * MAX_RANK + o_r[None, :]
        tl.store(p_out, b_a.to(tl.float32), mask=m_out)


@triton.jit
def _prefetch_b(
    p_pool, p_rooms, p_blocks, p_order, i_block, slot_stride, b_offset, o_row, BM: tl.constexpr
):  # fmt: skip
    """Brings the block's plan and its rows of B near, before the kernels that it waits for end."""
    slot, _, _ = _block(p_blocks, p_order, i_block, BM)
    if slot >= 0:
        p_b, room = slot_start(p_pool, p_rooms, slot, slot_stride, b_offset)
        prefetch(p_b + o_row.to(tl.int64) * room, True)


@triton.jit
def _delta(
    p_shrunk, p_b, p_rooms, p_ranks, slot, i_slice, num_slots, o_token, m_m, o_row, m_n, room,
    num_tokens,
    SLICES: tl.constexpr, MAX_RANK: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """What was shrunk times B^T: [BM, BN] for rows o_row of B; zero where a slice is unchanged."""
    rank = slice_room(p_rooms, p_ranks, slot, i_slice, num_slots)
    b_acc = tl.zeros([BM, BN], dtype=tl.float32)
    # most pools' ranks are one tile: no loop
    ranks = rank if MAX_RANK > BR else BR
    for i_r in range(0, ranks, BR):
        o_r = i_r + tl.arange(0, BR)
        m_r = o_r < rank
        m_b, m_s = m_n[:, None] & m_r[None, :], m_m[:, None] & m_r[None, :]
        p_row = p_b + o_row.to(tl.int64)[:, None] * room + o_r[None, :]
        b_b = tl.load(p_row, mask=m_b, other=0.0)  # [BN, BR]
        b_s = tl.zeros([BM, BR], dtype=tl.float32)
        for i_split in tl.static_range(SPLITS):
            o_part = (i_split * num_tokens.to(tl.int64) + o_token) * SLICES + i_slice
            p_part = p_shrunk + o_part[:, None] * MAX_RANK + o_r[None, :]
            b_s += tl.load(p_part, mask=m_s, other=0.0)
        b_acc = tl.dot(b_s.to(b_b.dtype), tl.trans(b_b), b_acc, input_precision=PRECISION)
    return b_acc


@triton.jit(do_not_specialize=["num_tokens", "num_slots"], do_not_specialize_on_alignment=_PLAN)
def expand_kernel(
    p_out, p_shrunk, p_pool, p_rooms, p_ranks, p_order, p_blocks, p_counts,
    slot_stride, b_offset, out_stride, num_slots, num_tokens, height0, height1, height2,
    SLICES: tl.constexpr, MAX_RANK: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Adds to out in place; grid [tiles of the slices' features, blocks at a time]."""
    i_tile = tl.program_id(0)
    tiles0 = tl.cdiv(height0, BN)
    tiles1 = tiles0 + tl.cdiv(height1, BN)
    i_slice = (i_tile >= tiles0).to(tl.int32) + (i_tile >= tiles1).to(tl.int32)
    # the slice's first tile, first feature and features
    tile = tl.where(i_slice == 0, 0, tl.where(i_slice == 1, tiles0, tiles1))
    base = tl.where(i_slice == 0, 0, tl.where(i_slice == 1, height0, height0 + height1))
    height = tl.where(i_slice == 0, height0, tl.where(i_slice == 1, height1, height2))
    o_n = (i_tile - tile) * BN + tl.arange(0, BN)
    m_n = o_n < height
    if DEPENDENT and tl.program_id(1) < tl.load(p_counts):
        o_ahead = base + tl.minimum(o_n, height - 1)
        _prefetch_b(
            p_pool, p_rooms, p_blocks, p_order, tl.program_id(1), slot_stride, b_offset, o_ahead, BM
        )  # fmt: skip
    wait_for_earlier(DEPENDENT)
    for i_block in range(tl.program_id(1), tl.load(p_counts), tl.num_programs(1)):
        slot, o_token, m_m = _block(p_blocks, p_order, i_block, BM)
        if tl.load(p_ranks + i_slice * num_slots + slot) > 0:
            p_b, room = slot_start(p_pool, p_rooms, slot, slot_stride, b_offset)
            b_delta = _delta(
                p_shrunk, p_b, p_rooms, p_ranks, slot, i_slice, num_slots, o_token, m_m, base + o_n,
                m_n, room, num_tokens, SLICES, MAX_RANK, SPLITS, PRECISION, BM, BN, BR,
            )  # fmt: skip
            p_tile = p_out + o_token[:, None] * out_stride + (base + o_n)[None, :]
            m_out = m_m[:, None] & m_n[None, :]
            b_out = tl.load(p_tile, mask=m_out, other=0.0).to(tl.float32) + b_delta
            tl.store(p_tile, b_out.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=["num_tokens", "num_slots"], do_not_specialize_on_alignment=_PLAN)
def expand_swiglu_kernel(
    p_gate_up, p_out, p_shrunk, p_pool, p_rooms, p_ranks, p_order, p_blocks, p_counts,
    slot_stride, b_offset, num_slots, num_tokens, height,
    MAX_RANK: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """SwiGLU of what the base made and the adapters add; grid [tiles of height, blocks at a time].

    Tokens without an adapter are in blocks too, as theirs is to be activated all the same.
    """
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_n = o_n < height
    if DEPENDENT and tl.program_id(1) < tl.load(p_counts + 1):
        o_ahead = tl.minimum(o_n, height - 1)
        _prefetch_b(
            p_pool, p_rooms, p_blocks, p_order, tl.program_id(1), slot_stride, b_offset, o_ahead, BM
        )  # fmt: skip
        _prefetch_b(
            p_pool, p_rooms, p_blocks, p_order, tl.program_id(1), slot_stride, b_offset,
            height + o_ahead, BM,
        )  # fmt: skip
    wait_for_earlier(DEPENDENT)
    for i_block in range(tl.program_id(1), tl.load(p_counts + 1), tl.num_programs(1)):
        slot, o_token, m_m = _block(p_blocks, p_order, i_block, BM)
        m_out = m_m[:, None] & m_n[None, :]
        p_gate = p_gate_up + o_token[:, None] * 2 * height + o_n[None, :]
        b_gate = tl.load(p_gate, mask=m_out, other=0.0).to(tl.float32)  # [BM, BN]
        b_up = tl.load(p_gate + height, mask=m_out, other=0.0).to(tl.float32)
        if slot >= 0:
            p_b, room = slot_start(p_pool, p_rooms, slot, slot_stride, b_offset)
            b_gate += _delta(
                p_shrunk, p_b, p_rooms, p_ranks, slot, 0, num_slots, o_token, m_m, o_n, m_n,
                room, num_tokens, 2, MAX_RANK, SPLITS, PRECISION, BM, BN, BR,
            )  # fmt: skip
            b_up += _delta(
                p_shrunk, p_b, p_rooms, p_ranks, slot, 1, num_slots, o_token, m_m, height + o_n,
                m_n, room, num_tokens, 2, MAX_RANK, SPLITS, PRECISION, BM, BN, BR,
            )  # fmt: skip
        b_out = b_gate * tl.sigmoid(b_gate) * b_up
        p_tile = p_out + o_token[:, None] * height + o_n[None, :]
        tl.store(p_tile, b_out.to(p_out.dtype.element_ty), mask=m_out)
