"""Rotary embedding and the cache write in float32 torch; fast enough to serve on a CPU."""

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

FLOAT8_MAX: Final = 448.0


def build_cos_sin(inv_freq: Tensor, max_pos: int, *, scaling: float = 1.0) -> Tensor:
    """Tabulate rotations: inv_freq [rot_dim / 2] to float32 [max_pos, rot_dim], cosines then sines.

    `scaling` multiplies both halves (the attention factor of YaRN and its kin).
    """
    steps = torch.arange(max_pos, dtype=torch.float32, device=inv_freq.device)
    angles = torch.outer(steps, inv_freq.float())
    return torch.cat([angles.cos(), angles.sin()], dim=-1) * scaling


def rotary_cache_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    cos_sin: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    kv_scale: Tensor | None = None,
) -> Tensor:
    """Rotate q and k, write k and v into kv in place, return q; arguments as the operator's."""
    # [num_tokens, 1, rot_dim / 2]
    cos, sin = cos_sin.index_select(0, positions).float().unsqueeze(1).chunk(2, dim=-1)
    rotated_k = _rotate(_norm(k, k_norm, eps), cos, sin)
    if kv_scale is None:
        _write(kv, rotated_k.to(k.dtype), v, slot_mapping)
    else:
        # torch moves float8 about as bytes only
        stored_k, stored_v = _float8(rotated_k, kv_scale[0]), _float8(v, kv_scale[1])
        as_bytes = kv.view(torch.uint8)
        _write(as_bytes, stored_k.view(torch.uint8), stored_v.view(torch.uint8), slot_mapping)
    return _rotate(_norm(q, q_norm, eps), cos, sin).to(q.dtype)


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    wide = x.float()
    if weight is None:
        return wide
    return rms_norm(wide, weight.shape, weight.float(), eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = [
        torch.addcmul(first * cos, second, sin, value=-1),
        torch.addcmul(second * cos, first, sin),
    ]
    return torch.cat(turned if rest.shape[-1] == 0 else [*turned, rest], dim=-1)


def _float8(x: Tensor, scale: Tensor) -> Tensor:
    """x [tokens, heads, head_dim] over the heads' scales, kept within the type's range."""
    return (x.float() / scale[:, None]).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(torch.float8_e4m3fn)


def _write(kv: Tensor, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
    kept = slot_mapping >= 0
    if not kept.all():
        k, v, slot_mapping = k[kept], v[kept], slot_mapping[kept]
    block_size = kv.shape[3]
    blocks = slot_mapping // block_size
    offsets = slot_mapping - blocks * block_size
    # indices around a slice put the tokens first: [num_tokens, kv_heads, head_dim]
    kv[:, 0][blocks, :, offsets] = k
    kv[:, 1][blocks, :, offsets] = v
