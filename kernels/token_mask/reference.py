"""The token mask in torch, and for a CPU in numpy, which does not wake threads for each row."""

import numpy as np
import torch
from torch import Tensor


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
    values = logits.detach().numpy()
    forbidden = ~bitmask.numpy().view(np.uint8)
    for row, packed in zip(rows.tolist(), forbidden, strict=True):
        bits = np.unpackbits(packed, count=logits.shape[1], bitorder="little")
        np.putmask(values[row], bits.view(np.bool_), -np.inf)
