# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""RMS norm, one program a row."""

import triton
import triton.language as tl

from baton.kernels.dependent_launch import wait_for_earlier


@triton.jit
def rms_norm_kernel(
    p_x, p_weight, p_out, stride_x, hidden, eps, DEPENDENT: tl.constexpr, BH: tl.constexpr
):
    """Normalise row i_row into the contiguous p_out."""
    i_row = tl.program_id(0).to(tl.int64)
    o_h = tl.arange(0, BH)
    m_h = o_h < hidden
    b_weight = tl.load(p_weight + o_h, mask=m_h, other=0.0).to(tl.float32)  # [BH]
    wait_for_earlier(DEPENDENT)
    b_x = tl.load(p_x + i_row * stride_x + o_h, mask=m_h, other=0.0).to(tl.float32)  # [BH]
    inverse_rms = tl.rsqrt(tl.sum(b_x * b_x, axis=0) / hidden + eps)
    b_out = b_x * inverse_rms * b_weight
    tl.store(p_out + i_row * hidden + o_h, b_out.to(p_out.dtype.element_ty), mask=m_h)
