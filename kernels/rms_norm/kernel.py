# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""RMS norm, one program a row, the residual addition optional."""

import triton
import triton.language as tl

from baton.kernels.dependent_launch import wait_for_earlier


@triton.jit
def rms_norm_kernel(
    p_x,
    p_residual,
    p_weight,
    p_out,
    p_total,
    stride_x,
    stride_residual,
    stride_out,
    stride_total,
    hidden,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BH: tl.constexpr,
):
    """Normalise row i_row; with HAS_RESIDUAL, add first and store the sum."""
    i_row = tl.program_id(0).to(tl.int64)
    o_h = tl.arange(0, BH)
    m_h = o_h < hidden
    b_weight = tl.load(p_weight + o_h, mask=m_h, other=0.0).to(tl.float32)  # [BH]
    wait_for_earlier(DEPENDENT)
    b_x = tl.load(p_x + i_row * stride_x + o_h, mask=m_h, other=0.0).to(tl.float32)  # [BH]
    if HAS_RESIDUAL:
        p_row = p_residual + i_row * stride_residual
        b_x += tl.load(p_row + o_h, mask=m_h, other=0.0).to(tl.float32)
        # the norm reads the sum as it is stored, as the unfused operators would
        b_total = b_x.to(p_total.dtype.element_ty)
        tl.store(p_total + i_row * stride_total + o_h, b_total, mask=m_h)
        b_x = b_total.to(tl.float32)
    inverse_rms = tl.rsqrt(tl.sum(b_x * b_x, axis=0) / hidden + eps)
    b_out = b_x * inverse_rms * b_weight
    tl.store(p_out + i_row * stride_out + o_h, b_out.to(p_out.dtype.element_ty), mask=m_h)
