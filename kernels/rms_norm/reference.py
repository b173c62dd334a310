"""RMS norm in float32, as the formula says it; fast enough to serve on a CPU."""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import rms_norm


class AddNorm(NamedTuple):
    """What the fused addition and norm return; both have the shape and dtype of x."""

    normed: Tensor
    residual: Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension of x [..., hidden] and multiply by weight [hidden]."""
    return rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> AddNorm:
    """Add, then normalise the stored sum."""
    total = x + residual
    return AddNorm(normed=rms_norm_reference(total, weight, eps), residual=total)
