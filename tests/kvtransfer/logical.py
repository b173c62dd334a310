"""A request's KV as it is meant, independent of any pool: what every layout is checked against."""

from __future__ import annotations

import torch

from baton.kvtransfer.layout import KVLayout


def logical_kv(layout: KVLayout, num_tokens: int, seed: int = 0) -> torch.Tensor:
    """Float32 noise `[num_tokens, num_layers, planes, model heads, head_dim]`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (
        num_tokens,
        layout.num_layers,
        layout.planes,
        layout.num_model_heads,
        layout.head_dim,
    )
    return torch.randn(shape, generator=generator)


def scales(layout: KVLayout) -> torch.Tensor:
    values = layout.scales or (1.0,) * (layout.num_layers * layout.planes)
    return torch.tensor(values).view(layout.num_layers, layout.planes, 1, 1)


def store(kv: torch.Tensor, layout: KVLayout, pool: torch.Tensor, blocks: list[int]) -> None:
    """Writes this rank's heads of `kv`, token by token."""
    for token in range(kv.shape[0]):
        block, offset = blocks[token // layout.block_size], token % layout.block_size
        heads = kv[token][:, :, layout.heads.start : layout.heads.stop] / scales(layout)
        pool[block, :, :, :, offset] = heads.to(pool.dtype)


def load(layout: KVLayout, pool: torch.Tensor, blocks: list[int], num_tokens: int) -> torch.Tensor:
    """Reads this rank's heads back, `[num_tokens, num_layers, planes, kv_heads, head_dim]`."""
    tokens = [
        pool[blocks[token // layout.block_size], :, :, :, token % layout.block_size].float()
        * scales(layout)
        for token in range(num_tokens)
    ]
    return torch.stack(tokens)
