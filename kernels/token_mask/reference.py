"""The token mask in torch; fast enough to serve on a CPU."""

import torch
from torch import Tensor


def token_mask_reference(logits: Tensor, bitmask: Tensor, rows: Tensor) -> None:
    """Arguments as the public operator's."""
    # Byte by byte through a table; on a little-endian host, byte k holds bits 8k on.
    bits = torch.arange(8, dtype=torch.int32, device=bitmask.device)
    values = torch.arange(256, dtype=torch.int32, device=bitmask.device)
    forbidden_by_byte = ((values[:, None] >> bits) & 1) == 0
    packed = bitmask.view(torch.uint8).flatten().to(torch.int32)
    forbidden = forbidden_by_byte.index_select(0, packed).view(len(rows), 32 * bitmask.shape[1])
    forbidden = forbidden[:, : logits.shape[1]]
    for row, mask in zip(rows.tolist(), forbidden, strict=True):
        logits[row].masked_fill_(mask, -torch.inf)
