"""Launches the SwiGLU kernel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from baton.kernels.dependent_launch import dependent_launch
from baton.kernels.launch_config import LaunchConfig, next_power_of_2, tuned_config
from baton.kernels.swiglu.kernel import swiglu_kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class SwigluConfig(LaunchConfig):
    """Elements of a row that one program computes, a power of two."""

    block_w: int = 1024


_DEFAULT = SwigluConfig(num_warps=4, num_stages=1)


def swiglu_triton(gate_up: Tensor) -> Tensor:
    """silu(gate) * up; arguments as the public operator's."""
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel() == 0:
        return out
    config = tuned_config("swiglu", "swiglu", _DEFAULT, gate_up.device)
    block_w = min(config.block_w, next_power_of_2(width))
    swiglu_kernel[(num_tokens, -(-width // block_w))](
        gate_up,
        out,
        gate_up.stride(0),
        width,
        width,
        BW=block_w,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **dependent_launch(gate_up.device),
    )
    return out
