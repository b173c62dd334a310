"""A linear layer with what stands before and after it: norm of the residual stream, SwiGLU.

A few tokens' products are bound by reading the weights, so there one kernel does all of it: it adds
the residual, normalises, multiplies and applies the activation while the weights stream by. For
more tokens the parts run one after the other, the product through the vendor's library.
"""

from typing import NamedTuple

from torch import Tensor, int32, zeros

from baton.kernels.backend import Backend, runs_triton
from baton.kernels.fused_linear.reference import fused_linear_reference

__all__ = ["Norm", "Normed", "fused_linear", "normed_linear", "split_counts"]


class Norm(NamedTuple):
    """An RMS norm: weight [width], contiguous, and what is added to the mean square."""

    weight: Tensor
    eps: float


class Normed(NamedTuple):
    """`out` of the linear layer, and `residual`, the sum that was normalised before it."""

    out: Tensor
    residual: Tensor


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
        return fused_linear_triton(problem, out, forced=backend == "triton").out
    return _into(out, fused_linear_reference(x, weight, bias, swiglu=swiglu))


def normed_linear(
    x: Tensor,
    residual: Tensor | None,
    norm: Norm,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    swiglu: bool = False,
    out: Tensor | None = None,
    counts: Tensor | None = None,
    backend: Backend = "auto",
) -> Normed:
    """Add the residual (if there is one), normalise, and go on as `fused_linear`.

    Args:
        x: [num_tokens, width], contiguous; not changed.
        residual: shape and dtype of x, contiguous, or None; not changed.
        norm: of `x + residual`, which is rounded to the dtype of x first.

    The others are those of `fused_linear`, as is what it raises.
    """
    _check(x, weight, bias, swiglu)
    _check_out(x, weight, swiglu, out)
    if norm.weight.shape != x.shape[1:] or norm.weight.stride(0) != 1:
        raise ValueError(f"norm weight {tuple(norm.weight.shape)} is not [{x.shape[1]}]")
    if residual is not None and (
        residual.shape != x.shape or residual.dtype != x.dtype or not residual.is_contiguous()
    ):
        raise ValueError(f"residual must be contiguous, {x.dtype} {tuple(x.shape)} as x is")
    if runs_triton(x, backend):
        from baton.kernels.fused_linear.launch import Problem, fused_linear_triton

        problem = Problem(
            x=x,
            weight=weight,
            bias=bias,
            swiglu=swiglu,
            residual=residual,
            norm_weight=norm.weight,
            eps=norm.eps,
            counts=counts,
        )
        made = fused_linear_triton(problem, out, forced=backend == "triton")
        return Normed(made.out, made.residual)
    from baton.kernels.fused_linear.reference import normed_linear_reference

    made_out, total = normed_linear_reference(
        x, residual, norm.weight, norm.eps, weight, bias, swiglu=swiglu
    )
    return Normed(_into(out, made_out), total)


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
