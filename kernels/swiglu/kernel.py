# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""SwiGLU, one program a tile of a row."""

import triton
import triton.language as tl

from baton.kernels.dependent_launch import wait_for_earlier


@triton.jit
def swiglu_kernel(
    p_gate_up, p_out, stride_gate_up, stride_out, width,
    DEPENDENT: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """One tile of one row; grid [tokens, tiles]."""
    i_row = tl.program_id(0).to(tl.int64)
    o_w = tl.program_id(1) * BW + tl.arange(0, BW)
    m_w = o_w < width
    p_gate = p_gate_up + i_row * stride_gate_up + o_w
    wait_for_earlier(DEPENDENT)
    b_gate = tl.load(p_gate, mask=m_w, other=0.0).to(tl.float32)  # [BW]
    b_up = tl.load(p_gate + width, mask=m_w, other=0.0).to(tl.float32)  # [BW]
    b_out = b_gate * tl.sigmoid(b_gate) * b_up
    tl.store(p_out + i_row * stride_out + o_w, b_out.to(p_out.dtype.element_ty), mask=m_w)
