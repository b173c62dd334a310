"""Which implementation of an operator runs."""

from typing import Literal

from torch import Tensor

Backend = Literal["auto", "torch", "triton"]


def runs_triton(tensor: Tensor, backend: Backend) -> bool:
    """Whether the Triton kernel is to run: "auto" means on CUDA tensors only.

    "triton" on CPU tensors works under Triton's interpreter alone (TRITON_INTERPRET=1).
    """
    if backend == "auto":
        return tensor.is_cuda
    if backend not in ("torch", "triton"):
        raise ValueError(f"backend must be 'auto', 'torch' or 'triton', got {backend!r}")
    return backend == "triton"
