"""The token mask in torch; fast enough to serve on a CPU."""

import torch
from torch import Tensor


def token_mask_reference(logits: Tensor, bitmask: Tensor, rows: Tensor) -> None:
    """Arguments as the public operator's."""
    # Bytes, not words: a quarter of the memory. On a little-endian host, byte k holds bits 8k on.
    packed = bitmask.view(torch.uint8)[:, :, None]
    bits = torch.arange(8, dtype=torch.uint8, device=bitmask.device)
    forbidden = ((packed >> bits) & 1).logical_not_().flatten(1)[:, : logits.shape[1]]
    forbidden = forbidden.to(torch.bool)
    if len(rows) == len(logits):
        in_order = torch.empty_like(forbidden)
        in_order[rows] = forbidden
        logits.masked_fill_(in_order, -torch.inf)
    else:
        logits[rows] = logits[rows].masked_fill_(forbidden, -torch.inf)
