"""The parts one after the other, norm and activation in float32; fast enough to serve on a CPU."""

from torch import Tensor
from torch.nn.functional import linear

from baton.kernels.rms_norm.reference import rms_norm_reference
from baton.kernels.swiglu.reference import swiglu_reference


def fused_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, swiglu: bool
) -> Tensor:
    """x [tokens, width] times weight [features, width]; arguments as the operator's."""
    out = linear(x, weight, bias)
    return swiglu_reference(out) if swiglu else out


def normed_linear_reference(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    *,
    swiglu: bool,
) -> Tensor:
    """The norm and then the product; arguments as the operator's."""
    normed = rms_norm_reference(x, norm_weight, eps)
    return fused_linear_reference(normed, weight, bias, swiglu=swiglu)
