"""Forbids tokens: sets the logits whose bit of a packed mask is 0 to minus infinity."""

import torch
from torch import Tensor

from baton.kernels.backend import Backend, runs_triton
from baton.kernels.token_mask.reference import token_mask_reference

__all__ = ["token_mask"]


def token_mask(logits: Tensor, bitmask: Tensor, rows: Tensor, *, backend: Backend = "auto") -> None:
    """Set `logits[rows[i], t]` to -inf wherever bit t of `bitmask[i]` is 0, in place.

    The bits lie as xgrammar and llguidance lay them: token t is bit t % 32 of word t // 32.

    Args:
        logits: float [num_logits, vocab]; last stride 1. Rows not in `rows` stay as they are.
        bitmask: int32 [n, ceil(vocab / 32)], contiguous, on the device of logits.
        rows: int64 [n], each at most once.
        backend: forces an implementation; "auto" goes by the device of logits.

    Raises:
        ValueError: a shape, type or stride does not fit.
    """
    if logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError(f"logits must be [rows, vocab] with last stride 1, got {logits.shape}")
    expected = (len(rows), -(-logits.shape[1] // 32))
    if bitmask.dtype != torch.int32 or tuple(bitmask.shape) != expected:
        raise ValueError(
            f"bitmask must be int32 {expected}, got {bitmask.dtype} {tuple(bitmask.shape)}"
        )
    if not bitmask.is_contiguous():
        raise ValueError("bitmask must be contiguous")
    if rows.dim() != 1 or rows.dtype != torch.int64:
        raise ValueError(f"rows must be int64 [n], got {rows.dtype} {tuple(rows.shape)}")
    if runs_triton(logits, backend):
        from baton.kernels.token_mask.launch import token_mask_triton

        token_mask_triton(logits, bitmask, rows)
    else:
        token_mask_reference(logits, bitmask, rows)
