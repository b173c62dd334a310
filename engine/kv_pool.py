"""The memory that KV blocks live in: one contiguous block-major tensor."""

from __future__ import annotations

import torch

from baton.kvtransfer.layout import KVLayout
from baton.protos.errors import ConfigError


class KVPool:
    """`tensor` is [num_blocks, num_layers, 2, kv_heads, block_size, head_dim], contiguous.

    A block with all its layers is one run of `layout.block_bytes` bytes. Who owns which block is
    not known here.
    """

    def __init__(self, layout: KVLayout, num_blocks: int, device: torch.device) -> None:
        """Allocates and zeroes the pool. ConfigError if it has no block or does not fit."""
        if num_blocks < 1:
            raise ConfigError(
                f"the KV cache holds {num_blocks} blocks of {layout.block_bytes} bytes; "
                "raise kv_cache_bytes or num_blocks, or free memory on the device",
                param="num_blocks",
            )
        self.layout = layout
        try:
            shape, dtype = (num_blocks, *layout.block_shape), getattr(torch, layout.dtype)
            self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        except RuntimeError as error:
            raise ConfigError(
                f"no memory on {device} for {num_blocks} KV blocks "
                f"({num_blocks * layout.block_bytes} bytes): {error}",
                param="num_blocks",
            ) from error
        # Views: one per layer, [num_blocks, 2, kv_heads, block_size, head_dim], with block strides.
        self.layers: tuple[torch.Tensor, ...] = tuple(
            self.tensor[:, layer] for layer in range(layout.num_layers)
        )
        # Per layer float32 [2, kv_heads]: what stored float8 values are multiplied with.
        self.scales: tuple[torch.Tensor, ...] = ()
        if layout.dtype == "float8_e4m3fn":
            scales = torch.tensor(layout.scales or [1.0] * (2 * layout.num_layers), device=device)
            by_head = scales.view(-1, 2, 1).repeat(1, 1, layout.kv_heads).contiguous()
            self.scales = by_head.unbind(0)

    @property
    def num_blocks(self) -> int:
        return self.tensor.shape[0]
