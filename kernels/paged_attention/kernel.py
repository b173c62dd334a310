# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Paged attention: `extend_kernel` for rows of several tokens, `decode_kernel` for rows of one.

Both pack the query heads that share a key-value head into one tile, so keys are read once a group,
and both leave the other's rows alone, so a mixed batch is two launches and no host decision.
Scores live in base 2: exp2 is what the hardware has.
"""

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _attend_keys(
    b_q, b_m, b_l, b_acc, b_position, m_row, p_kv, p_table, first, last,
    stride_kvb, stride_kvs, stride_kvn, scale, soft_cap, window,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Fold keys first:last into the tile's running maximum b_m, sum b_l and mix b_acc."""
    o_d = tl.arange(0, BD)
    m_d = o_d < HEAD_DIM
    for i_n in range(first, last, BN):
        o_n = i_n + tl.arange(0, BN)
        m_n = o_n < last
        b_block = tl.load(p_table + o_n // BLOCK_SIZE, mask=m_n, other=0).to(tl.int64)  # [BN]
        o_slot = b_block * stride_kvb + (o_n % BLOCK_SIZE).to(tl.int64) * stride_kvn
        p_k = p_kv + o_slot[None, :] + o_d[:, None]
        b_k = tl.load(p_k, mask=m_d[:, None] & m_n[None, :], other=0.0)  # [BD, BN]
        b_s = tl.dot(b_q, b_k, input_precision=PRECISION) * scale  # [BM, BN]
        if HAS_CAP:
            # tanh(x) = 2 sigmoid(2x) - 1
            b_s = soft_cap * (2.0 * tl.sigmoid(2.0 * b_s / soft_cap) - 1.0)
        m_s = m_row[:, None] & m_n[None, :] & (o_n[None, :] <= b_position[:, None])
        if HAS_WINDOW:
            m_s = m_s & (o_n[None, :] > b_position[:, None] - window)
        b_s = tl.where(m_s, b_s * LOG2_E, float("-inf"))
        b_m_new = tl.maximum(b_m, tl.max(b_s, axis=1))  # [BM]
        # a row that has seen no key yet keeps -inf; subtracting it from itself would be NaN
        b_m_safe = tl.where(b_m_new == float("-inf"), 0.0, b_m_new)
        b_p = tl.exp2(b_s - b_m_safe[:, None])  # [BM, BN]
        b_decay = tl.exp2(b_m - b_m_safe)  # [BM]
        b_l = b_l * b_decay + tl.sum(b_p, axis=1)
        p_v = p_kv + stride_kvs + o_slot[:, None] + o_d[None, :]
        b_v = tl.load(p_v, mask=m_n[:, None] & m_d[None, :], other=0.0)  # [BN, BD]
        b_acc = b_acc * b_decay[:, None]
        b_acc += tl.dot(b_p.to(b_v.dtype), b_v, input_precision=PRECISION)  # [BM, BD]
        b_m = b_m_new
    return b_m, b_l, b_acc


@triton.jit
def _find_row(p_query_start, num_rows, i_tile, BQ: tl.constexpr):
    # row r's tiles start at query_start[r] // BQ + r, room enough for each row's partial last one
    low: tl.int32 = 0
    high = num_rows
    while low < high:
        middle = (low + high) // 2
        if tl.load(p_query_start + middle) // BQ + middle <= i_tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def extend_kernel(
    p_q, p_kv, p_out, p_query_start, p_context_lens, p_tables, num_rows,
    stride_qt, stride_qh, stride_ot, stride_oh,
    stride_kvb, stride_kvs, stride_kvh, stride_kvn, stride_table, scale, soft_cap, window,
    GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program a tile of a row's tokens and a key-value head; grid [tiles, kv_heads]."""
    BQ: tl.constexpr = BM // GROUP
    i_tile = tl.program_id(0)
    i_head = tl.program_id(1).to(tl.int64)
    i_row = _find_row(p_query_start, num_rows, i_tile, BQ)
    start = tl.load(p_query_start + i_row)
    query_len = tl.load(p_query_start + i_row + 1) - start
    first_query = (i_tile - (start // BQ + i_row)) * BQ
    if (query_len > 1) & (first_query < query_len):
        context_len = tl.load(p_context_lens + i_row)
        o_m = tl.arange(0, BM)
        o_q = first_query + o_m // GROUP
        m_m = (o_m < BQ * GROUP) & (o_q < query_len)
        o_d = tl.arange(0, BD)
        m_md = m_m[:, None] & (o_d < HEAD_DIM)[None, :]
        o_token = (start + o_q).to(tl.int64)
        o_head = i_head * GROUP + o_m % GROUP
        p_q_tile = p_q + (o_token * stride_qt + o_head * stride_qh)[:, None] + o_d[None, :]
        b_q = tl.load(p_q_tile, mask=m_md, other=0.0)  # [BM, BD]
        b_position = context_len - query_len + o_q  # [BM]
        last = tl.minimum(context_len, context_len - query_len + first_query + BQ)
        first = 0
        if HAS_WINDOW:
            first = tl.maximum(context_len - query_len + first_query - window + 1, 0) // BN * BN
        b_m = tl.full([BM], float("-inf"), dtype=tl.float32)
        b_l = tl.zeros([BM], dtype=tl.float32)
        b_acc = tl.zeros([BM, BD], dtype=tl.float32)
        b_m, b_l, b_acc = _attend_keys(
            b_q, b_m, b_l, b_acc, b_position, m_m, p_kv + i_head * stride_kvh,
            p_tables + i_row.to(tl.int64) * stride_table, first, last,
            stride_kvb, stride_kvs, stride_kvn, scale, soft_cap, window,
            BLOCK_SIZE, HEAD_DIM, HAS_WINDOW, HAS_CAP, PRECISION, BN, BD,
        )  # fmt: skip
        # a token without keys gets zeros
        b_out = b_acc / tl.where(b_l == 0.0, 1.0, b_l)[:, None]
        p_out_tile = p_out + (o_token * stride_ot + o_head * stride_oh)[:, None] + o_d[None, :]
        tl.store(p_out_tile, b_out.to(p_out.dtype.element_ty), mask=m_md)


@triton.jit
def decode_kernel(
    p_q, p_kv, p_out, p_lse, p_query_start, p_context_lens, p_tables,
    stride_qt, stride_qh, stride_ot, stride_oh, stride_os, stride_lt, stride_lh,
    stride_kvb, stride_kvs, stride_kvh, stride_kvn, stride_table, scale, soft_cap, window,
    GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    NUM_SPLITS: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
    PRECISION: tl.constexpr, BG: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program a row, key-value head and split of the keys; grid [rows, kv_heads, splits].

    With one split p_out is the output, by token. With more, p_out and p_lse are each split's mix
    and log-sum-exp, by row.
    """
    i_row = tl.program_id(0)
    i_head = tl.program_id(1).to(tl.int64)
    i_split = tl.program_id(2)
    start = tl.load(p_query_start + i_row)
    if tl.load(p_query_start + i_row + 1) - start == 1:
        i_token = start.to(tl.int64)
        context_len = tl.load(p_context_lens + i_row)
        o_g = tl.arange(0, BG)
        m_g = o_g < GROUP
        o_d = tl.arange(0, BD)
        m_gd = m_g[:, None] & (o_d < HEAD_DIM)[None, :]
        o_head = i_head * GROUP + o_g
        p_q_tile = p_q + i_token * stride_qt + o_head[:, None] * stride_qh + o_d[None, :]
        b_q = tl.load(p_q_tile, mask=m_gd, other=0.0)  # [BG, BD]
        b_position = tl.zeros([BG], dtype=tl.int32) + context_len - 1  # [BG]
        begin = 0
        if HAS_WINDOW:
            begin = tl.maximum(context_len - window, 0) // BN * BN
        # splits are whole tiles, so that only the last tile of a row is partial
        per_split = tl.cdiv(tl.cdiv(context_len - begin, BN), NUM_SPLITS) * BN
        first = begin + i_split * per_split
        last = tl.minimum(first + per_split, context_len)
        b_m = tl.full([BG], float("-inf"), dtype=tl.float32)
        b_l = tl.zeros([BG], dtype=tl.float32)
        b_acc = tl.zeros([BG, BD], dtype=tl.float32)
        b_m, b_l, b_acc = _attend_keys(
            b_q, b_m, b_l, b_acc, b_position, m_g, p_kv + i_head * stride_kvh,
            p_tables + i_row.to(tl.int64) * stride_table, first, last,
            stride_kvb, stride_kvs, stride_kvn, scale, soft_cap, window,
            BLOCK_SIZE, HEAD_DIM, HAS_WINDOW, HAS_CAP, PRECISION, BN, BD,
        )  # fmt: skip
        b_sum = tl.where(b_l == 0.0, 1.0, b_l)
        b_out = b_acc / b_sum[:, None]  # [BG, BD]
        i_out = i_token if NUM_SPLITS == 1 else i_row.to(tl.int64)
        p_o = p_out + i_out * stride_ot + o_head[:, None] * stride_oh + i_split * stride_os
        tl.store(p_o + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=m_gd)
        if NUM_SPLITS > 1:
            p_lse_tile = p_lse + i_out * stride_lt + o_head * stride_lh + i_split
            tl.store(p_lse_tile, b_m + tl.log2(b_sum), mask=m_g)


@triton.jit
def combine_kernel(
    p_parts, p_lse, p_out, p_query_start,
    stride_pt, stride_ph, stride_ps, stride_lt, stride_lh, stride_ot, stride_oh,
    HEAD_DIM: tl.constexpr, NUM_SPLITS: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Weigh the splits of one head of one decode row by log-sum-exp; grid [rows, q_heads]."""
    i_row = tl.program_id(0).to(tl.int64)
    i_head = tl.program_id(1).to(tl.int64)
    start = tl.load(p_query_start + i_row)
    if tl.load(p_query_start + i_row + 1) - start == 1:
        o_s = tl.arange(0, BS)
        m_s = o_s < NUM_SPLITS
        o_d = tl.arange(0, BD)
        m_d = o_d < HEAD_DIM
        p_lse_head = p_lse + i_row * stride_lt + i_head * stride_lh
        b_lse = tl.load(p_lse_head + o_s, mask=m_s, other=float("-inf"))  # [BS]
        b_max = tl.max(b_lse, axis=0)
        b_weight = tl.exp2(b_lse - tl.where(b_max == float("-inf"), 0.0, b_max))  # [BS]
        b_sum = tl.sum(b_weight, axis=0)
        p_head = p_parts + i_row * stride_pt + i_head * stride_ph
        p_tile = p_head + o_s[:, None] * stride_ps + o_d[None, :]
        b_parts = tl.load(p_tile, mask=m_s[:, None] & m_d[None, :], other=0.0)  # [BS, BD]
        b_out = tl.sum(b_parts * b_weight[:, None], axis=0)  # [BD]
        b_out = b_out / tl.where(b_sum == 0.0, 1.0, b_sum)
        p_o = p_out + start.to(tl.int64) * stride_ot + i_head * stride_oh + o_d
        tl.store(p_o, b_out.to(p_out.dtype.element_ty), mask=m_d)
