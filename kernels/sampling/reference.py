"""Draws in float32 torch; fast enough to serve on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from baton.kernels.sampling import Filters, Noise

# The mixer is a two-round 32-bit xorshift-multiply of the hash-prospector project (public domain).
_ROUND_1: Final = 0x21F0AAAD
# 0xd35a2d97 as a signed number: torch multiplies int32 modulo 2**32.
_ROUND_2: Final = 0xD35A2D97 - (1 << 32)


def draw_reference(logits: Tensor, noise: Noise | None, filters: Filters | None) -> Tensor:
    """int64 [rows]; arguments as the operator's."""
    if noise is None:
        return logits.argmax(dim=-1)
    kept = logits.float()
    if filters is not None:
        kept = kept.clone() if kept is logits else kept
        kept[filters.rows] = filtered(
            kept[filters.rows], filters, noise.temperatures[filters.rows, None]
        )
    random = noise.temperatures > 0
    if bool(random.all()):
        made = gumbel(noise.token_keys, noise.row_keys).mul_(noise.temperatures[:, None])
        return made.add_(kept).argmax(dim=-1)
    tokens = logits.argmax(dim=-1)
    if bool(random.any()):
        made = gumbel(noise.token_keys, noise.row_keys[:, random])
        made.mul_(noise.temperatures[random, None])
        tokens[random] = made.add_(kept[random]).argmax(dim=-1)
    return tokens


def filtered(logits: Tensor, filters: Filters, temperatures: Tensor) -> Tensor:
    """logits float32 [n, vocab], changed, with -inf where a token is out; temperatures [n, 1].

    Top-k and top-p both come down to "the first m in falling order"; m follows from the sorted
    values alone, so the result does not depend on how a device sorts.
    """
    limits = logits.amax(dim=-1, keepdim=True) + temperatures * filters.min_ps[:, None].log()
    logits.masked_fill_(logits < limits, -torch.inf)
    top_ks, top_ps = filters.top_ks[:, None], filters.top_ps[:, None]
    if not bool(((top_ks < logits.shape[1]) | (top_ps < 1.0)).any()):
        return logits
    max_top_k = min(int(top_ks.max()), logits.shape[1])
    if max_top_k < logits.shape[1]:
        values = logits.topk(max_top_k, dim=-1).values
    else:
        values = logits.sort(dim=-1, descending=True).values
    inside = torch.arange(values.shape[1], device=values.device) < top_ks
    probs = (values / temperatures).masked_fill_(~inside, -torch.inf).softmax(-1)
    mass_before = probs.cumsum(-1) - probs
    # Rounding may let the mass reach 1 early, which must not cut rows without top-p.
    kept = (inside & ((mass_before < top_ps) | (top_ps >= 1.0))).sum(-1, keepdim=True)
    last = values.gather(1, kept - 1)
    above = logits > last
    ties = logits == last
    room = kept - above.sum(-1, keepdim=True)
    keep = above | (ties & (ties.cumsum(-1, dtype=torch.int32) <= room))
    return logits.masked_fill_(~keep, -torch.inf)


def random_bits(tokens: Tensor, rows: Tensor) -> Tensor:
    """int32 [rows, vocab], uniform over [0, 2**31), from token keys and row keys.

    Only integer operations decide it, so every device agrees.
    """
    x = tokens + rows[0, :, None]
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= _ROUND_1
    x ^= rows[1, :, None]
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= _ROUND_2
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    return x.bitwise_and_(0x7FFFFFFF)


def gumbel(tokens: Tensor, rows: Tensor) -> Tensor:
    """float32 [rows, vocab] of standard Gumbel noise, always finite.

    -log(E) with E = -log(1 - v) exponential: the largest noise comes from v near 0, where a float
    resolves 2**-32, so rare tokens keep their tail. v stops short of 1, where E is infinite.
    """
    v = (
        random_bits(tokens, rows)
        .to(torch.float32)
        .add_(0.5)
        .mul_(2.0**-31)
        .clamp_(max=1 - 2.0**-24)
    )
    return v.neg_().log1p_().neg_().log_().neg_()
