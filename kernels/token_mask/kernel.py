# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""The token mask: stores only, one program a tile of a row."""

import triton
import triton.language as tl


@triton.jit
def token_mask_kernel(
    p_logits, p_bitmask, p_rows, stride_logits, num_words, vocab, BV: tl.constexpr
):
    """One tile of one masked row; grid [masked rows, tiles]."""
    i_mask = tl.program_id(0).to(tl.int64)
    i_row = tl.load(p_rows + i_mask)
    o_v = tl.program_id(1) * BV + tl.arange(0, BV)
    m_v = o_v < vocab
    # All 32 lanes of a word read the same address, which the cache serves as one.
    b_words = tl.load(p_bitmask + i_mask * num_words + o_v // 32, mask=m_v, other=-1)  # [BV]
    m_forbidden = m_v & (((b_words >> (o_v % 32)) & 1) == 0)
    # Allowed logits are neither read nor written.
    tl.store(p_logits + i_row * stride_logits + o_v, float("-inf"), mask=m_forbidden)
