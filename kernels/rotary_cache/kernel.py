# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Per-head norm, rotary embedding and cache write; one program a token and a tile of heads.

Program axis 1 counts tiles of query heads first, then tiles of key-value heads. A head is held as
three blocks: the two halves that rotate against each other, and the rest that passes through.
"""

import triton
import triton.language as tl

from baton.kernels.dependent_launch import wait_for_earlier


@triton.jit
def _rotated_head(
    p_x, p_cos, p_norm, o_h, m_h, stride_h, eps,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
    HAS_NORM: tl.constexpr, BF: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    o_f = tl.arange(0, BF)
    m_f = o_f < HALF
    p_f = p_x + o_h[:, None] * stride_h + o_f[None, :]
    m_hf = m_h[:, None] & m_f[None, :]
    b_first = tl.load(p_f, mask=m_hf, other=0.0).to(tl.float32)  # [BH, BF]
    b_second = tl.load(p_f + HALF, mask=m_hf, other=0.0).to(tl.float32)  # [BH, BF]
    o_r = 2 * HALF + tl.arange(0, BR)
    m_hr = m_h[:, None] & (o_r < HEAD_DIM)[None, :]
    b_rest = tl.zeros([o_h.shape[0], BR], dtype=tl.float32)  # [BH, BR]
    if REST:
        p_r = p_x + o_h[:, None] * stride_h + o_r[None, :]
        b_rest = tl.load(p_r, mask=m_hr, other=0.0).to(tl.float32)
    if HAS_NORM:
        b_square = tl.sum(b_first * b_first + b_second * b_second, axis=1)  # [BH]
        b_square += tl.sum(b_rest * b_rest, axis=1)
        b_scale = tl.rsqrt(b_square / HEAD_DIM + eps)[:, None]
        b_first *= b_scale * tl.load(p_norm + o_f, mask=m_f, other=0.0).to(tl.float32)[None, :]
        p_second = p_norm + HALF + o_f
        b_second *= b_scale * tl.load(p_second, mask=m_f, other=0.0).to(tl.float32)[None, :]
        if REST:
            b_weight = tl.load(p_norm + o_r, mask=o_r < HEAD_DIM, other=0.0).to(tl.float32)
            b_rest *= b_scale * b_weight[None, :]
    b_cos = tl.load(p_cos + o_f, mask=m_f, other=0.0).to(tl.float32)[None, :]  # [1, BF]
    b_sin = tl.load(p_cos + HALF + o_f, mask=m_f, other=0.0).to(tl.float32)[None, :]  # [1, BF]
    b_turned = b_first * b_cos - b_second * b_sin
    return b_turned, b_second * b_cos + b_first * b_sin, b_rest


@triton.jit
def _float8(b_x):
    # a comparison with NaN is false, so NaN stays
    b_x = tl.where(b_x > 448.0, 448.0, b_x)
    return tl.where(b_x < -448.0, -448.0, b_x)


@triton.jit
def _store_head(
    p_out, b_first, b_second, b_rest, o_h, m_h, stride_h, p_scale,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, FP8: tl.constexpr,
    BF: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    if FP8:
        b_scale = tl.load(p_scale + o_h, mask=m_h, other=1.0)[:, None]  # [BH, 1]
        b_first, b_second = _float8(b_first / b_scale), _float8(b_second / b_scale)
        b_rest = _float8(b_rest / b_scale)
    o_f = tl.arange(0, BF)
    p_f = p_out + o_h[:, None] * stride_h + o_f[None, :]
    m_hf = m_h[:, None] & (o_f < HALF)[None, :]
    tl.store(p_f, b_first.to(p_out.dtype.element_ty), mask=m_hf)
    tl.store(p_f + HALF, b_second.to(p_out.dtype.element_ty), mask=m_hf)
    if REST:
        o_r = 2 * HALF + tl.arange(0, BR)
        p_r = p_out + o_h[:, None] * stride_h + o_r[None, :]
        m_hr = m_h[:, None] & (o_r < HEAD_DIM)[None, :]
        tl.store(p_r, b_rest.to(p_out.dtype.element_ty), mask=m_hr)


@triton.jit
def rotary_cache_kernel(
    p_q, p_k, p_v, p_kv, p_out, p_positions, p_slots, p_cos_sin, p_q_norm, p_k_norm, p_kv_scale,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh,
    stride_kvb, stride_kvs, stride_kvh, stride_kvn, stride_ot, stride_oh,
    stride_position, stride_slot, stride_cos, num_q_heads, num_kv_heads, block_size, eps,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
    HAS_Q_NORM: tl.constexpr, HAS_K_NORM: tl.constexpr, FP8: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BH: tl.constexpr, BF: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Rotate a tile of heads of one token; grid [tokens, query tiles + key-value tiles]."""
    i_token = tl.program_id(0).to(tl.int64)
    i_tile = tl.program_id(1)
    num_q_tiles = tl.cdiv(num_q_heads, BH)
    position = tl.load(p_positions + i_token * stride_position).to(tl.int64)
    p_cos = p_cos_sin + position * stride_cos
    wait_for_earlier(DEPENDENT)
    if i_tile < num_q_tiles:
        o_h = i_tile * BH + tl.arange(0, BH).to(tl.int64)
        m_h = o_h < num_q_heads
        b_first, b_second, b_rest = _rotated_head(
            p_q + i_token * stride_qt, p_cos, p_q_norm, o_h, m_h, stride_qh, eps,
            HEAD_DIM, HALF, REST, HAS_Q_NORM, BF, BR,
        )  # fmt: skip
        _store_head(
            p_out + i_token * stride_ot, b_first, b_second, b_rest, o_h, m_h, stride_oh, p_kv_scale,
            HEAD_DIM, HALF, REST, False, BF, BR,
        )  # fmt: skip
    else:
        slot = tl.load(p_slots + i_token * stride_slot).to(tl.int64)
        o_h = (i_tile - num_q_tiles) * BH + tl.arange(0, BH).to(tl.int64)
        # a negative slot writes nothing
        m_h = o_h < tl.where(slot >= 0, num_kv_heads, 0)
        i_block = slot // block_size
        p_page = p_kv + i_block * stride_kvb + (slot - i_block * block_size) * stride_kvn
        b_first, b_second, b_rest = _rotated_head(
            p_k + i_token * stride_kt, p_cos, p_k_norm, o_h, m_h, stride_kh, eps,
            HEAD_DIM, HALF, REST, HAS_K_NORM, BF, BR,
        )  # fmt: skip
        _store_head(
            p_page, b_first, b_second, b_rest, o_h, m_h, stride_kvh, p_kv_scale,
            HEAD_DIM, HALF, REST, FP8, BF, BR,
        )  # fmt: skip
        o_d = tl.arange(0, BD)
        m_hd = m_h[:, None] & (o_d < HEAD_DIM)[None, :]
        p_v_head = p_v + i_token * stride_vt + o_h[:, None] * stride_vh + o_d[None, :]
        b_v = tl.load(p_v_head, mask=m_hd, other=0.0)  # [BH, BD]
        if FP8:
            p_v_scale = p_kv_scale + num_kv_heads + o_h
            b_v_scale = tl.load(p_v_scale, mask=m_h, other=1.0)[:, None]
            b_v = _float8(b_v.to(tl.float32) / b_v_scale)
        p_v_page = p_page + stride_kvs + o_h[:, None] * stride_kvh + o_d[None, :]
        tl.store(p_v_page, b_v.to(p_kv.dtype.element_ty), mask=m_hd)
