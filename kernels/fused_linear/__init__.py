"""A linear layer with what stands before and after it: norm, SwiGLU, the residual stream's sum.

A few tokens' products are bound by reading the weights, so there one kernel does all of it: it
normalises, multiplies, activates or adds while the weights stream by. For more tokens the parts run
one after the other, the product and its sum through the vendor's library.
"""

from typing import NamedTuple

from torch import Tensor, int32, zeros

from baton.kernels.backend import Backend, runs_triton
from baton.kernels.fused_linear.reference import fused_linear_reference

__all__ = ["Norm", "add_linear", "fused_linear", "normed_linear", "split_counts"]


class Norm(NamedTuple):
    """An RMS norm: weight [width], contiguous, and what is added to the mean square."""

    weight: Tensor
    eps: float


def split_counts(weight: Tensor) -> Tensor:
    """The `counts` of the operators below for this weight [features, width]."""
    return zeros(-(-weight.shape[0] // 16), dtype=int32, device=weight.device)


def fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    swiglu: bool = False,
    out: Tensor | None = None,
    counts: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Return `x weight^T + bias`, or with swiglu `silu(gate) * up` of its two halves.

    Args:
        x: [num_tokens, width], contiguous.
        weight: [features, width], contiguous, dtype of x.
        bias: [features] or None.
        swiglu: the first half of the features gates the second.
        out: [num_tokens, features (half with swiglu)], contiguous, dtype of x: written and
            returned; None: a new tensor.
        counts: int32 [features / 16 or more], zeros, for this weight alone: work space without
            which a product of few outputs cannot be split. Zeros again afterwards.
        backend: forces an implementation; "auto" goes by the device of x.

    Raises:
        ValueError: a shape, dtype or stride does not fit.
    """
    _check(x, weight, bias, swiglu)
    _check_out(x, weight, swiglu, out)
    if runs_triton(x, backend):
        from baton.kernels.fused_linear.launch import Problem, fused_linear_triton

        problem = Problem(x=x, weight=weight, bias=bias, swiglu=swiglu, counts=counts)
        return fused_linear_triton(problem, out, forced=backend == "triton")
    return _into(out, fused_linear_reference(x, weight, bias, swiglu=swiglu))


def add_linear(
    total: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    counts: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Add `x weight^T + bias` to total in place, rounded once, and return it.

    Args:
        total: [num_tokens, features], contiguous, dtype of x.

    The others are those of `fused_linear`, as is what it raises.
    """
    _check(x, weight, bias, False)
    _check_out(x, weight, False, total)
    if runs_triton(x, backend):
        from baton.kernels.fused_linear.launch import Problem, fused_linear_triton

        problem = Problem(x=x, weight=weight, bias=bias, counts=counts, adds=True)
        return fused_linear_triton(problem, total, forced=backend == "triton")
    return total.add_(fused_linear_reference(x, weight, bias, swiglu=False))


def normed_linear(
    x: Tensor,
    norm: Norm,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    swiglu: bool = False,
    out: Tensor | None = None,
    counts: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Normalise x (which is not changed), and go on as `fused_linear`, whose other arguments and
    errors these are."""
    _check(x, weight, bias, swiglu)
    _check_out(x, weight, swiglu, out)
    if norm.weight.shape != x.shape[1:] or norm.weight.stride(0) != 1:
        raise ValueError(f"norm weight {tuple(norm.weight.shape)} is not [{x.shape[1]}]")
    if runs_triton(x, backend):
        from baton.kernels.fused_linear.launch import Problem, fused_linear_triton

        problem = Problem(
            x=x,
            weight=weight,
            bias=bias,
            swiglu=swiglu,
            norm_weight=norm.weight,
            eps=norm.eps,
            counts=counts,
        )
        return fused_linear_triton(problem, out, forced=backend == "triton")
    from baton.kernels.fused_linear.reference import normed_linear_reference

    made = normed_linear_reference(x, norm.weight, norm.eps, weight, bias, swiglu=swiglu)
    return _into(out, made)


def _into(out: Tensor | None, made: Tensor) -> Tensor:
    return made if out is None else out.copy_(made)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, swiglu: bool) -> None:
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"expected x [tokens, width] and weight [features, width], got {tuple(x.shape)} and"
            f" {tuple(weight.shape)}"
        )
    if not x.is_contiguous() or not weight.is_contiguous():
        raise ValueError("x and weight must be contiguous")
    if x.dtype != weight.dtype or x.device != weight.device:
        raise ValueError(f"x is {x.dtype} on {x.device}, weight {weight.dtype} on {weight.device}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} is not [{weight.shape[0]}]")
    if swiglu and weight.shape[0] % 2:
        raise ValueError(f"swiglu halves the features, but weight has {weight.shape[0]}")


def _check_out(x: Tensor, weight: Tensor, swiglu: bool, out: Tensor | None) -> None:
    shape = (x.shape[0], weight.shape[0] // (2 if swiglu else 1))
    if out is not None and (out.shape != shape or out.dtype != x.dtype or not out.is_contiguous()):
        raise ValueError(f"out must be contiguous, {x.dtype} {shape}")
