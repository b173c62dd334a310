"""Checks and preparation of a pool tensor before a wire registers it."""

from __future__ import annotations

import mmap

import torch

from baton.kvtransfer.layout import KVLayout
from baton.protos.errors import ConfigError


def check_pool(pool: torch.Tensor, layout: KVLayout) -> int:
    """The number of blocks of a pool `[num_blocks, *layout.block_shape]`, contiguous.

    Raises ConfigError if it is anything else.
    """
    dtype = str(pool.dtype).removeprefix("torch.")
    if pool.dim() != 6 or pool.shape[1:] != layout.block_shape or dtype != layout.dtype:
        raise ConfigError(
            f"the KV pool is {dtype} {tuple(pool.shape)}, but its layout says {layout.dtype}"
            f" (num_blocks, {', '.join(map(str, layout.block_shape))})",
            param="pool",
        )
    if pool.shape[0] < 1 or not pool.is_contiguous():
        raise ConfigError(
            f"the KV pool must be contiguous with at least one block, not {pool.shape[0]} blocks"
            f" of strides {pool.stride()}",
            param="pool",
        )
    return pool.shape[0]


def prefault(pool: torch.Tensor) -> None:
    """Makes the pages of a CPU pool exist, leaving its values as they are.

    Otherwise the first write of a peer into each page pays for it, within its time to first token.
    """
    stride = max(mmap.PAGESIZE // pool.element_size(), 1)
    one_of_each_page = pool.view(-1)[::stride]
    one_of_each_page.copy_(one_of_each_page.clone())
