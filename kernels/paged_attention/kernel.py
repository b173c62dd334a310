# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Paged attention: `extend_kernel` for rows of several tokens, `decode_kernel` for rows of one.

Both pack the query heads that share a key-value head into one tile, so keys are read once a group,
and both leave the other's rows alone, so a mixed batch is two launches and no host decision.
Scores live in base 2: exp2 is what the hardware has. FP8 keys and values are multiplied as float16,
which holds every one of them; their scales go into the scores and the output. What changes from
step to step is no reason to compile anew: it is not specialized.
"""

import triton
import triton.language as tl

from baton.kernels.dependent_launch import wait_for_earlier

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _attend_keys(
    b_q, b_m, b_l, b_acc, b_position, p_kv, p_table, first, last,
    stride_kvb, stride_kvs, stride_kvn, scale, soft_cap, window,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Fold keys first:last into the tile's running maximum b_m, sum b_l and mix b_acc.

    Without MASKED the keys must be whole tiles that every query sees.
    """
    o_d = tl.arange(0, BD)
    m_d = o_d < HEAD_DIM
    for i_n in range(first, last, BN):
        o_n = i_n + tl.arange(0, BN)
        m_n = (o_n < last) if MASKED else (o_n >= 0)
        b_block = tl.load(p_table + o_n // BLOCK_SIZE, mask=m_n, other=0).to(tl.int64)  # [BN]
        o_slot = b_block * stride_kvb + (o_n % BLOCK_SIZE).to(tl.int64) * stride_kvn
        p_k = p_kv + o_slot[None, :] + o_d[:, None]
        if MASKED or HEAD_DIM < BD:
            b_k = tl.load(p_k, mask=m_d[:, None] & m_n[None, :], other=0.0)  # [BD, BN]
        else:
            b_k = tl.load(p_k)
        b_s = tl.dot(b_q, b_k.to(b_q.dtype), input_precision=PRECISION)  # [BM, BN]
        if HAS_CAP:
            # tanh(x) = 2 sigmoid(2x) - 1
            b_s = soft_cap * LOG2_E * (2.0 * tl.sigmoid(2.0 * scale / soft_cap * b_s) - 1.0)
        else:
            b_s = b_s * (scale * LOG2_E)
        if MASKED:
            m_s = m_n[None, :] & (o_n[None, :] <= b_position[:, None])
            if HAS_WINDOW:
                m_s = m_s & (o_n[None, :] > b_position[:, None] - window)
            b_s = tl.where(m_s, b_s, float("-inf"))
        b_m_new = tl.maximum(b_m, tl.max(b_s, axis=1))  # [BM]
        b_m_safe = b_m_new
        if MASKED:
            # a row that has seen no key yet keeps -inf; subtracting it from itself would be NaN
            b_m_safe = tl.where(b_m_new == float("-inf"), 0.0, b_m_new)
        b_p = tl.exp2(b_s - b_m_safe[:, None])  # [BM, BN]
        b_decay = tl.exp2(b_m - b_m_safe)  # [BM]
        b_l = b_l * b_decay + tl.sum(b_p, axis=1)
        p_v = p_kv + stride_kvs + o_slot[:, None] + o_d[None, :]
        if MASKED or HEAD_DIM < BD:
            b_v = tl.load(p_v, mask=m_n[:, None] & m_d[None, :], other=0.0)  # [BN, BD]
        else:
            b_v = tl.load(p_v)
        b_acc = b_acc * b_decay[:, None]
        b_acc = tl.dot(
            b_p.to(b_q.dtype), b_v.to(b_q.dtype), b_acc, input_precision=PRECISION
        )  # [BM, BD]
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


@triton.jit(do_not_specialize=["num_rows", "stride_table"])
def extend_kernel(
    p_q, p_kv, p_out, p_query_start, p_context_lens, p_tables, p_kv_scale, num_rows,
    stride_qt, stride_qh, stride_ot, stride_oh,
    stride_kvb, stride_kvs, stride_kvh, stride_kvn, stride_table, scale, soft_cap, window,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program a tile of a row's tokens and a key-value head; grid [tiles * kv_heads].

    The last tiles, which see the most keys, go first: a long one at the end would run alone.
    """
    BQ: tl.constexpr = BM // GROUP
    i_head = (tl.program_id(0) % KV_HEADS).to(tl.int64)
    i_tile = tl.num_programs(0) // KV_HEADS - 1 - tl.program_id(0) // KV_HEADS
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
        v_scale = 1.0
        if FP8:
            b_q = b_q.to(tl.float16)
            scale = scale * tl.load(p_kv_scale + i_head)
            v_scale = tl.load(p_kv_scale + KV_HEADS + i_head)
        first_position = context_len - query_len + first_query
        b_position = context_len - query_len + o_q  # [BM]
        last = tl.minimum(context_len, first_position + BQ)
        p_head = p_kv + i_head * stride_kvh
        p_table = p_tables + i_row.to(tl.int64) * stride_table
        b_m = tl.full([BM], float("-inf"), dtype=tl.float32)
        b_l = tl.zeros([BM], dtype=tl.float32)
        b_acc = tl.zeros([BM, BD], dtype=tl.float32)
        first = 0
        if HAS_WINDOW:
            first = tl.maximum(first_position - window + 1, 0) // BN * BN
        else:
            # the tile's first query, and so every one, sees these
            first = (first_position + 1) // BN * BN
            b_m, b_l, b_acc = _attend_keys(
                b_q, b_m, b_l, b_acc, b_position, p_head, p_table, 0, first,
                stride_kvb, stride_kvs, stride_kvn, scale, soft_cap, window,
                BLOCK_SIZE, HEAD_DIM, False, HAS_WINDOW, HAS_CAP, PRECISION, BN, BD,
            )  # fmt: skip
        b_m, b_l, b_acc = _attend_keys(
            b_q, b_m, b_l, b_acc, b_position, p_head, p_table, first, last,
            stride_kvb, stride_kvs, stride_kvn, scale, soft_cap, window,
            BLOCK_SIZE, HEAD_DIM, True, HAS_WINDOW, HAS_CAP, PRECISION, BN, BD,
        )  # fmt: skip
        # a token without keys gets zeros
        b_out = b_acc * (v_scale / tl.where(b_l == 0.0, 1.0, b_l))[:, None]
        p_out_tile = p_out + (o_token * stride_ot + o_head * stride_oh)[:, None] + o_d[None, :]
        tl.store(p_out_tile, b_out.to(p_out.dtype.element_ty), mask=m_md)


@triton.jit(do_not_specialize=["num_rows"])
def plan_kernel(
    p_query_start, p_context_lens, p_row_item, p_item_row, num_rows, window,
    target_items, min_split, HAS_WINDOW: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Cut the decode rows' keys into items of about equal length; one program.

    Row r gets items row_item[r]:row_item[r + 1] (none if it is no decode), item i belongs to row
    item_row[i], row_item[num_rows] is their number. A row gets the part of target_items that it has
    of all keys, rounded down: a few items more than fit at once would take as long again as all.
    """
    o_r = tl.arange(0, BR)
    m_r = o_r < num_rows
    b_start = tl.load(p_query_start + o_r, mask=m_r, other=0)
    b_stop = tl.load(p_query_start + o_r + 1, mask=m_r, other=0)
    b_keys = tl.load(p_context_lens + o_r, mask=m_r, other=0)  # [BR]
    if HAS_WINDOW:
        b_keys = b_keys - tl.maximum(b_keys - window, 0) // BN * BN
    b_decodes = m_r & (b_stop - b_start == 1)
    b_keys = tl.where(b_decodes, b_keys, 0)
    b_share = b_keys.to(tl.int64) * target_items // tl.maximum(tl.sum(b_keys, axis=0), 1)
    b_items = tl.minimum(b_share.to(tl.int32), b_keys // min_split)
    # a padding row has no keys and still an item, which writes its zeros
    b_items = tl.where(b_decodes, tl.maximum(b_items, 1), 0)  # [BR]
    b_end = tl.cumsum(b_items, axis=0)
    b_first = b_end - b_items
    tl.store(p_row_item, 0)
    tl.store(p_row_item + 1 + o_r, b_end, mask=m_r)
    for i in range(tl.max(b_items, axis=0)):
        tl.store(p_item_row + b_first + i, o_r, mask=i < b_items)


@triton.jit
def _combine(
    p_part, p_lse, p_o, num_splits, stride_ps, stride_ph, stride_ls, stride_oh,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BS: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Weigh the splits of a group's query heads by their log-sum-exp; all heads at once."""
    o_h = tl.arange(0, BH)
    m_h = o_h < GROUP
    o_d = tl.arange(0, BD)
    m_hd = m_h[:, None] & (o_d < HEAD_DIM)[None, :]
    p_tile = p_part + o_h[:, None] * stride_ph + o_d[None, :]
    b_max = tl.full([BH], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BH], dtype=tl.float32)
    b_acc = tl.zeros([BH, BD], dtype=tl.float32)
    for i_s in range(0, num_splits, BS):
        o_s = i_s + tl.arange(0, BS)
        m_s = o_s < num_splits
        # other programs wrote these: past the first-level cache, which does not see that
        b_lse = tl.load(
            p_lse + o_s[:, None] * stride_ls + o_h[None, :],
            mask=m_s[:, None] & m_h[None, :],
            other=float("-inf"),
            cache_modifier=".cg",
        )  # [BS, BH]
        b_part = tl.load(
            p_tile[None, :, :] + o_s[:, None, None] * stride_ps,
            mask=m_s[:, None, None] & m_hd[None, :, :],
            other=0.0,
            cache_modifier=".cg",
        )  # [BS, BH, BD]
        b_new = tl.maximum(b_max, tl.max(b_lse, axis=0))
        b_safe = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_weight = tl.exp2(b_lse - b_safe[None, :])
        b_decay = tl.exp2(b_max - b_safe)
        b_sum = b_sum * b_decay + tl.sum(b_weight, axis=0)
        b_acc = b_acc * b_decay[:, None] + tl.sum(b_part * b_weight[:, :, None], axis=0)
        b_max = b_new
    b_out = b_acc / tl.where(b_sum == 0.0, 1.0, b_sum)[:, None]
    p_out = p_o + o_h[:, None] * stride_oh + o_d[None, :]
    tl.store(p_out, b_out.to(p_o.dtype.element_ty), mask=m_hd)


@triton.jit(do_not_specialize=["num_rows", "stride_table"])
def decode_kernel(
    p_q, p_kv, p_out, p_parts, p_lse, p_counts, p_query_start, p_context_lens, p_tables,
    p_kv_scale, p_row_item, p_item_row, num_rows,
    stride_qt, stride_qh, stride_ot, stride_oh, stride_ps, stride_ph, stride_ls,
    stride_kvb, stride_kvs, stride_kvh, stride_kvn, stride_table, scale, soft_cap, window,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BG: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    BS: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """One program an item of the plan and a key-value head; grid [items * kv_heads].

    The only item of a row writes the output. Of several each leaves its mix and log-sum-exp, and
    whichever is done last (p_counts, zero before and after) weighs them all: no second launch.
    """
    i_head = (tl.program_id(0) % KV_HEADS).to(tl.int64)
    i_item = tl.program_id(0) // KV_HEADS
    # the plan was made before the layer's other kernels: it may be read before they are over
    if i_item >= tl.load(p_row_item + num_rows):
        wait_for_earlier(DEPENDENT)
    else:
        i_row = tl.load(p_item_row + i_item).to(tl.int64)
        first_item = tl.load(p_row_item + i_row)
        num_splits = tl.load(p_row_item + i_row + 1) - first_item
        i_token = tl.load(p_query_start + i_row).to(tl.int64)
        context_len = tl.load(p_context_lens + i_row)
        o_g = tl.arange(0, BG)
        m_g = o_g < GROUP
        o_d = tl.arange(0, BD)
        m_gd = m_g[:, None] & (o_d < HEAD_DIM)[None, :]
        o_head = i_head * GROUP + o_g
        p_q_tile = p_q + i_token * stride_qt + o_head[:, None] * stride_qh + o_d[None, :]
        wait_for_earlier(DEPENDENT)
        b_q = tl.load(p_q_tile, mask=m_gd, other=0.0)  # [BG, BD]
        v_scale = 1.0
        if FP8:
            b_q = b_q.to(tl.float16)
            scale = scale * tl.load(p_kv_scale + i_head)
            v_scale = tl.load(p_kv_scale + KV_HEADS + i_head)
        b_position = tl.zeros([BG], dtype=tl.int32) + context_len - 1  # [BG]
        begin = 0
        if HAS_WINDOW:
            begin = tl.maximum(context_len - window, 0) // BN * BN
        # splits are whole tiles, so that only the last tile of a row is partial
        per_split = tl.cdiv(tl.cdiv(context_len - begin, BN), num_splits) * BN
        first = begin + (i_item - first_item) * per_split
        last = tl.minimum(first + per_split, context_len)
        p_head = p_kv + i_head * stride_kvh
        p_table = p_tables + i_row * stride_table
        b_m = tl.full([BG], float("-inf"), dtype=tl.float32)
        b_l = tl.zeros([BG], dtype=tl.float32)
        b_acc = tl.zeros([BG, BD], dtype=tl.float32)
        if not HAS_WINDOW:
            whole = first + tl.maximum(last - first, 0) // BN * BN
            b_m, b_l, b_acc = _attend_keys(
                b_q, b_m, b_l, b_acc, b_position, p_head, p_table, first, whole,
                stride_kvb, stride_kvs, stride_kvn, scale, soft_cap, window,
                BLOCK_SIZE, HEAD_DIM, False, HAS_WINDOW, HAS_CAP, PRECISION, BN, BD,
            )  # fmt: skip
            first = whole
        b_m, b_l, b_acc = _attend_keys(
            b_q, b_m, b_l, b_acc, b_position, p_head, p_table, first, last,
            stride_kvb, stride_kvs, stride_kvn, scale, soft_cap, window,
            BLOCK_SIZE, HEAD_DIM, True, HAS_WINDOW, HAS_CAP, PRECISION, BN, BD,
        )  # fmt: skip
        b_sum = tl.where(b_l == 0.0, 1.0, b_l)
        b_out = b_acc * (v_scale / b_sum)[:, None]  # [BG, BD]
        p_o = p_out + i_token * stride_ot
        if num_splits == 1:
            p_o_tile = p_o + o_head[:, None] * stride_oh + o_d[None, :]
            tl.store(p_o_tile, b_out.to(p_out.dtype.element_ty), mask=m_gd)
        else:
            p_part = p_parts + i_item.to(tl.int64) * stride_ps + o_head[:, None] * stride_ph
            tl.store(p_part + o_d[None, :], b_out, mask=m_gd)
            p_lse_tile = p_lse + i_item.to(tl.int64) * stride_ls + o_head
            # no key at all is log-sum-exp -inf: it must weigh nothing
            b_lse = tl.where(b_l == 0.0, float("-inf"), b_m + tl.log2(b_sum))
            tl.store(p_lse_tile, b_lse, mask=m_g)
            # all threads' stores come before the count, which others read before they load them
            tl.debug_barrier()
            p_count = p_counts + i_row * KV_HEADS + i_head
            if tl.atomic_add(p_count, 1, sem="acq_rel", scope="gpu") == num_splits - 1:
                tl.store(p_count, 0)
                i_first = first_item.to(tl.int64)
                i_q = i_head * GROUP
                _combine(
                    p_parts + i_first * stride_ps + i_q * stride_ph,
                    p_lse + i_first * stride_ls + i_q,
                    p_o + i_q * stride_oh, num_splits, stride_ps, stride_ph, stride_ls, stride_oh,
                    GROUP, HEAD_DIM, BS, BH, BD,
                )  # fmt: skip
