"""Launches the rotary and cache-write kernel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from baton.kernels.dependent_launch import dependent_launch
from baton.kernels.launch_config import LaunchConfig, next_power_of_2, tuned_config
from baton.kernels.rotary_cache.kernel import rotary_cache_kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryConfig(LaunchConfig):
    """Heads that one program rotates, a power of two."""

    block_h: int = 4


_DEFAULT = RotaryConfig(num_warps=2, num_stages=1)


def rotary_cache_triton(
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
    """Rotate q and k, write k and v into kv, return q; arguments as the operator's."""
    num_tokens, num_q_heads, head_dim = q.shape
    num_kv_heads, rot_dim = k.shape[1], cos_sin.shape[1]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if num_tokens == 0:
        return out
    config = tuned_config("rotary_cache", "rotary_cache", _DEFAULT, q.device)
    tiles = -(-num_q_heads // config.block_h) + -(-num_kv_heads // config.block_h)
    rotary_cache_kernel[(num_tokens, tiles)](
        *(q, k, v, kv, out, positions, slot_mapping, cos_sin),
        *(cos_sin if q_norm is None else q_norm, cos_sin if k_norm is None else k_norm),
        cos_sin if kv_scale is None else kv_scale,
        *(q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1)),
        *(*kv.stride()[:4], out.stride(0), out.stride(1)),
        *(positions.stride(0), slot_mapping.stride(0), cos_sin.stride(0)),
        *(num_q_heads, num_kv_heads, kv.shape[3], eps),
        HEAD_DIM=head_dim,
        HALF=rot_dim // 2,
        REST=rot_dim < head_dim,
        HAS_Q_NORM=q_norm is not None,
        HAS_K_NORM=k_norm is not None,
        FP8=kv_scale is not None,
        BH=config.block_h,
        BF=next_power_of_2(rot_dim // 2),
        BR=next_power_of_2(head_dim - rot_dim),
        BD=next_power_of_2(head_dim),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **dependent_launch(q.device),
    )
    return out
