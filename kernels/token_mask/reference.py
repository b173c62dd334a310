"""The token mask in torch, and for a CPU in numpy, which does not wake threads for each row."""

from typing import Final

import numpy as np
import torch
from torch import Tensor

_MINUS_INFINITY: Final = np.float32(-np.inf).view(np.int32)
_ALLOWED: Final = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
# For each byte of a mask, what its eight logits' bits are anded and then ored with.
_KEPT: Final = np.where(_ALLOWED, np.int32(-1), np.int32(0))
_SET: Final = np.where(_ALLOWED, np.int32(0), _MINUS_INFINITY)


def token_mask_reference(logits: Tensor, bitmask: Tensor, rows: Tensor) -> None:
    """Arguments as the public operator's."""
    if logits.device.type == "cpu" and logits.dtype is torch.float32:
        _on_cpu(logits, bitmask, rows)
        return
    # Byte by byte through a table; on a little-endian host, byte k holds bits 8k on.
    bits = torch.arange(8, dtype=torch.int32, device=bitmask.device)
    values = torch.arange(256, dtype=torch.int32, device=bitmask.device)
    forbidden_by_byte = ((values[:, None] >> bits) & 1) == 0
    packed = bitmask.view(torch.uint8).flatten().to(torch.int32)
    forbidden = forbidden_by_byte.index_select(0, packed).view(len(rows), 32 * bitmask.shape[1])
    forbidden = forbidden[:, : logits.shape[1]]
    for row, mask in zip(rows.tolist(), forbidden, strict=True):
        logits[row].masked_fill_(mask, -torch.inf)


def _on_cpu(logits: Tensor, bitmask: Tensor, rows: Tensor) -> None:
    # As bits, without a branch for each: a store under a mask takes five times as long.
    values, vocab = logits.detach().numpy(), logits.shape[1]
    for row, packed in zip(rows.tolist(), bitmask.numpy().view(np.uint8), strict=True):
        bits = values[row].view(np.int32)
        bits &= _KEPT.take(packed, axis=0).reshape(-1)[:vocab]
        bits |= _SET.take(packed, axis=0).reshape(-1)[:vocab]
