"""Launches the RMS norm kernel."""

import torch
from torch import Tensor

from baton.kernels.dependent_launch import dependent_launch
from baton.kernels.launch_config import LaunchConfig, next_power_of_2, tuned_config
from baton.kernels.rms_norm.kernel import rms_norm_kernel
from baton.kernels.rms_norm.reference import AddNorm

_DEFAULT = LaunchConfig(num_warps=4, num_stages=1)


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The norm alone; arguments as the public operator's."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, out, out, eps)
    return out


def add_rms_norm_triton(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> AddNorm:
    """Addition and norm; arguments as the public operator's."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, residual, weight, out, total, eps)
    return AddNorm(normed=out, residual=total)


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, out: Tensor, total: Tensor, eps: float
) -> None:
    hidden = x.shape[-1]
    if x.numel() == 0:
        return
    rows = x.reshape(-1, hidden)
    residual_rows = rows if residual is None else residual.reshape(-1, hidden)
    config = tuned_config("rms_norm", "rms_norm", _DEFAULT, x.device)
    rms_norm_kernel[(rows.shape[0],)](
        rows,
        residual_rows,
        weight,
        out,
        total,
        rows.stride(0),
        residual_rows.stride(0),
        hidden,
        hidden,
        hidden,
        eps,
        HAS_RESIDUAL=residual is not None,
        BH=next_power_of_2(hidden),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **dependent_launch(x.device),
    )
