# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Products of a few tokens with a weight matrix that is read once, at the rate of the memory.

The norm needs the sum of squares of the whole row before it can scale, but a scale commutes with
the product: the kernels multiply by norm weight only and scale the result, so one pass does.
"""

import triton
import triton.language as tl

from baton.kernels.dependent_launch import prefetch, wait_for_earlier
from baton.kernels.fused_linear.adapters import add_adapters

# Elements of 2 bytes in a cache line.
LINE: tl.constexpr = tl.constexpr(64)


@triton.jit
def _inputs(p_x, p_norm, o_x, o_k, m_x, m_k, HAS_NORM: tl.constexpr):
    """A tile of x in float32, times norm weight; and its squares."""
    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_square = b_x * b_x
    if HAS_NORM:
        b_x *= tl.load(p_norm + o_k, mask=m_k, other=0.0).to(tl.float32)
    return b_x, b_square


@triton.jit
def _activated(b_out, b_up, p_bias, o_n, m_n, n, HAS_BIAS: tl.constexpr, SWIGLU: tl.constexpr):
    if HAS_BIAS:
        b_out += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    if SWIGLU:
        if HAS_BIAS:
            b_up += tl.load(p_bias + n + o_n, mask=m_n, other=0.0).to(tl.float32)
        b_out = b_out * tl.sigmoid(b_out) * b_up
    return b_out


@triton.jit
def gemv_kernel(
    p_x, p_norm, p_w, p_bias, p_out, n, k, eps,
    HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, SWIGLU: tl.constexpr, ADDS: tl.constexpr,
    DEPENDENT: tl.constexpr, BESIDE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One token; each program every so many tiles of n. BK spans k: x stays in registers.

    With SWIGLU row n + i of the weight is output i's up; with ADDS the output adds to what is in
    its place. What is read is always a tile ahead, weights before the kernels that make x are over.
    """
    first = tl.program_id(0) * BN
    step = tl.num_programs(0) * BN
    o_k = tl.arange(0, BK)
    m_k = o_k < k
    o_n = first + tl.arange(0, BN)
    m_w = (o_n < n)[:, None] & m_k[None, :]
    p_tile = p_w + o_n.to(tl.int64)[:, None] * k + o_k[None, :]
    up = n.to(tl.int64) * k
    b_w = tl.load(p_tile, mask=m_w, other=0.0, eviction_policy="evict_first")
    b_w_up = b_w
    if SWIGLU:
        b_w_up = tl.load(p_tile + up, mask=m_w, other=0.0, eviction_policy="evict_first")
    wait_for_earlier(DEPENDENT and not BESIDE)
    b_before = tl.zeros([BN], dtype=tl.float32)
    if ADDS:
        b_before = tl.load(p_out + o_n, mask=o_n < n, other=0.0).to(tl.float32)
    b_x, b_square = _inputs(p_x, p_norm, o_k, o_k, m_k, m_k, HAS_NORM)
    if HAS_NORM:
        b_x *= tl.rsqrt(tl.sum(b_square, axis=0) / k + eps)
    for i_n in range(first, n, step):
        o_n = i_n + tl.arange(0, BN)
        m_n = o_n < n
        b_before_next = b_before
        if ADDS:
            p_next = p_out + o_n + step
            b_before_next = tl.load(p_next, mask=o_n + step < n, other=0.0).to(tl.float32)
        p_tile += step.to(tl.int64) * k
        m_w = (o_n + step < n)[:, None] & m_k[None, :]
        b_next = tl.load(p_tile, mask=m_w, other=0.0, eviction_policy="evict_first")
        b_next_up = b_next
        if SWIGLU:
            b_next_up = tl.load(p_tile + up, mask=m_w, other=0.0, eviction_policy="evict_first")
        b_out = tl.sum(b_w.to(tl.float32) * b_x[None, :], axis=1)
        b_up = b_out
        if SWIGLU:
            b_up = tl.sum(b_w_up.to(tl.float32) * b_x[None, :], axis=1)
        b_out = _activated(b_out, b_up, p_bias, o_n, m_n, n, HAS_BIAS, SWIGLU)
        tl.store(p_out + o_n, (b_before + b_out).to(p_out.dtype.element_ty), mask=m_n)
        b_w, b_w_up, b_before = b_next, b_next_up, b_before_next
    wait_for_earlier(DEPENDENT and BESIDE)


@triton.jit
def _sum_parts(
    p_part, SPLITS: tl.constexpr, SIZE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """The splits' sums, in their order."""
    b_sum = tl.zeros([BN, BM], dtype=tl.float32)
    for i in range(SPLITS):
        # other programs wrote these: past the first-level cache, which does not see that
        b_sum += tl.load(p_part + i * SIZE, cache_modifier=".cg")
    return b_sum


@triton.jit(do_not_specialize=["m", "num_slots"], do_not_specialize_on_alignment=["p_slots"])
def small_matmul_kernel(
    p_x, p_norm, p_w, p_bias, p_out, p_parts, p_counts, m, n, k, eps,
    p_shrunk, p_pool, p_rooms, p_ranks, p_slots, slot_stride, b_offset, num_slots, end0, end1,
    ADAPTED: tl.constexpr, SLICES: tl.constexpr, RANKS: tl.constexpr, PARTS: tl.constexpr,
    BR: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, SWIGLU: tl.constexpr, ADDS: tl.constexpr,
    PRECISION: tl.constexpr, DEPENDENT: tl.constexpr, BESIDE: tl.constexpr, AHEAD: tl.constexpr,
    SPLITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Up to BM tokens; grid [tiles of n, SPLITS]. The weights are the matrix units' tall operand.

    AHEAD cache lines of each row are asked for before the kernels that make x are over. With ADDS
    the output adds to what is in its place. Of several SPLITS of k (without norm) each leaves its
    sums, and whichever is done last (p_counts, zero before and after) adds them up. ADAPTED: what
    adapters add is added before that, each of them by one split; a tile is of one slice.
    """
    i_n, i_split = tl.program_id(0), tl.program_id(1)
    o_n = i_n * BN + tl.arange(0, BN)
    m_n = o_n < n
    o_m = tl.arange(0, BM)
    m_m = o_m < m
    per_split = tl.cdiv(tl.cdiv(k, BK), SPLITS) * BK
    begin = i_split * per_split
    p_row = p_w + o_n.to(tl.int64)[:, None] * k
    o_line = tl.minimum(begin + tl.arange(0, AHEAD) * LINE, k - 1)
    b_ahead = p_w + tl.minimum(o_n, n - 1).to(tl.int64)[:, None] * k + o_line[None, :]
    if not BESIDE:
        prefetch(b_ahead, DEPENDENT)
        if SWIGLU:
            prefetch(b_ahead + n.to(tl.int64) * k, DEPENDENT)
    wait_for_earlier(DEPENDENT and not BESIDE)
    b_acc = tl.zeros([BN, BM], dtype=tl.float32)
    b_acc_up = tl.zeros([BN, BM], dtype=tl.float32)
    b_squares = tl.zeros([BM], dtype=tl.float32)
    if ADDS:
        # the first split's sum starts with it
        m_before = m_n[:, None] & (o_m < tl.where(i_split == 0, m, 0))[None, :]
        p_before = p_out + o_m.to(tl.int64)[None, :] * n + o_n[:, None]
        b_acc += tl.load(p_before, mask=m_before, other=0.0).to(tl.float32)
    for i_k in range(begin, tl.minimum(begin + per_split, k), BK):
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < k
        m_w = m_n[:, None] & m_k[None, :]
        b_w = tl.load(p_row + o_k[None, :], mask=m_w, other=0.0)  # [BN, BK]
        o_x = o_m[:, None] * k + o_k[None, :]
        m_x = m_m[:, None] & m_k[None, :]
        if HAS_NORM:
            b_x, b_square = _inputs(p_x, p_norm, o_x, o_k[None, :], m_x, m_k[None, :], HAS_NORM)
            b_squares += tl.sum(b_square, axis=1)
            b_t = tl.trans(b_x.to(p_x.dtype.element_ty))  # [BK, BM]
        else:
            b_t = tl.trans(tl.load(p_x + o_x, mask=m_x, other=0.0))
        b_acc = tl.dot(b_w, b_t, b_acc, input_precision=PRECISION)
        if SWIGLU:
            p_up = p_row + n.to(tl.int64) * k + o_k[None, :]
            b_w_up = tl.load(p_up, mask=m_w, other=0.0)
            b_acc_up = tl.dot(b_w_up, b_t, b_acc_up, input_precision=PRECISION)
    if HAS_NORM:
        b_inverse = tl.rsqrt(b_squares / k + eps)
        b_acc *= b_inverse[None, :]
        b_acc_up *= b_inverse[None, :]
    wait_for_earlier(DEPENDENT and BESIDE)
    if ADAPTED:
        i_slice = 0
        if not SWIGLU:
            i_slice = (i_n * BN >= end0).to(tl.int32) + (i_n * BN >= end1).to(tl.int32)
        b_acc = add_adapters(
            b_acc, p_shrunk, p_pool, p_rooms, p_ranks, p_slots, i_split, SPLITS, slot_stride,
            b_offset, num_slots, i_slice, o_n, m_n, m,
            SLICES, RANKS, PARTS, PRECISION, BM, BR,
        )  # fmt: skip
        if SWIGLU:
            b_acc_up = add_adapters(
                b_acc_up, p_shrunk, p_pool, p_rooms, p_ranks, p_slots, i_split, SPLITS, slot_stride,
                b_offset, num_slots, 1, n + o_n, m_n, m,
                SLICES, RANKS, PARTS, PRECISION, BM, BR,
            )  # fmt: skip
    p_tile = p_out + o_m.to(tl.int64)[None, :] * n + o_n[:, None]
    m_tile = m_n[:, None] & m_m[None, :]
    is_last = True
    if SPLITS > 1:
        SIZE: tl.constexpr = (2 if SWIGLU else 1) * BN * BM
        p_part = p_parts + i_n.to(tl.int64) * (SPLITS * SIZE)
        p_part += tl.arange(0, BN)[:, None] * BM + o_m[None, :]
        tl.store(p_part + i_split * SIZE, b_acc)
        if SWIGLU:
            tl.store(p_part + i_split * SIZE + BN * BM, b_acc_up)
        # all threads' stores come before the count, which others read before they load them
        tl.debug_barrier()
        is_last = tl.atomic_add(p_counts + i_n, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
        if is_last:
            tl.store(p_counts + i_n, 0)
            b_acc = _sum_parts(p_part, SPLITS, SIZE, BM, BN)
            if SWIGLU:
                b_acc_up = _sum_parts(p_part + BN * BM, SPLITS, SIZE, BM, BN)
    if is_last:
        b_out = _activated(b_acc, b_acc_up, p_bias, o_n[:, None], m_n[:, None], n, HAS_BIAS, SWIGLU)
        tl.store(p_tile, b_out.to(p_out.dtype.element_ty), mask=m_tile)
