"""The gated activation of Llama-style MLPs: silu(gate) * up."""

from torch import Tensor

from baton.kernels.backend import Backend, runs_triton
from baton.kernels.swiglu.reference import swiglu_reference

__all__ = ["swiglu"]


def swiglu(gate_up: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Return `silu(gate) * up`, computed in float32.

    Args:
        gate_up: [num_tokens, 2 * intermediate], gate in the first half; last stride 1.
        backend: forces an implementation; "auto" goes by the device of gate_up.

    Returns:
        [num_tokens, intermediate], contiguous, dtype of gate_up.

    Raises:
        ValueError: a shape or stride does not fit.
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 != 0:
        raise ValueError(f"gate_up must be [tokens, 2 * width], got {tuple(gate_up.shape)}")
    if gate_up.stride(1) != 1:
        raise ValueError("the last dimension of gate_up must be contiguous")
    if runs_triton(gate_up, backend):
        from baton.kernels.swiglu.launch import swiglu_triton

        return swiglu_triton(gate_up)
    return swiglu_reference(gate_up)
