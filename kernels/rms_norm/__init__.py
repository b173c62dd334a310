"""Root-mean-square layer normalisation."""

from torch import Tensor

from baton.kernels.backend import Backend, runs_triton
from baton.kernels.rms_norm.reference import rms_norm_reference

__all__ = ["rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, backend: Backend = "auto") -> Tensor:
    """Return `x / sqrt(mean(x^2) + eps) * weight` over the last dimension, computed in float32.

    Args:
        x: [..., hidden], last stride 1; leading dimensions collapse to one stride.
        weight: [hidden], contiguous.
        eps: added to the mean square.
        backend: forces an implementation; "auto" goes by the device of x.

    Returns:
        A new tensor, shape and dtype of x.

    Raises:
        ValueError: a shape, device or stride does not fit.
    """
    _check(x, weight)
    if runs_triton(x, backend):
        from baton.kernels.rms_norm.launch import rms_norm_triton

        return rms_norm_triton(x, weight, eps)
    return rms_norm_reference(x, weight, eps)


def _check(x: Tensor, weight: Tensor) -> None:
    if x.dim() < 1 or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"weight {tuple(weight.shape)} does not fit x {tuple(x.shape)}: need its last dimension"
        )
    if x.stride(-1) != 1 or weight.stride(0) != 1:
        raise ValueError("the last dimension of x and weight must be contiguous")
    if x.device != weight.device:
        raise ValueError(f"x is on {x.device} but weight is on {weight.device}")
