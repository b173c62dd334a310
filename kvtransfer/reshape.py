"""Converts blocks of one pool into the format of another: heads, block size, dtype, scales."""

from __future__ import annotations

import torch

from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.mapping import KVMap


def convert_blocks(
    pool: torch.Tensor, blocks: torch.Tensor, skip_tokens: int, kv_map: KVMap, out: torch.Tensor
) -> None:
    """Fills `out` with what `blocks` of `pool` hold, as the receiver stores it.

    pool: `[num_blocks, *source.block_shape]`; blocks: int64 indices of the request's consecutive
    blocks, on any device. `out` is `[n, *kv_map.sent_layout.block_shape]` of the receiver's dtype,
    on the pool's device; its first token is number `skip_tokens` of the first block. Tokens beyond
    the last block, at the end of a prompt, become zeros. Values beyond FP8's range are clamped.
    """
    source, target = kv_map.source, kv_map.target
    first = kv_map.heads.start - source.first_head
    found = pool[blocks.to(pool.device)][:, :, :, first : first + len(kv_map.heads)]
    if source.block_size != target.block_size or skip_tokens:
        found = _reblocked(found, skip_tokens, out.shape[0], target.block_size)
    if source.dtype == target.dtype and _scales(source) == _scales(target):
        out.copy_(found)
        return
    factors = [mine / theirs for mine, theirs in zip(_scales(source), _scales(target), strict=True)]
    scale = torch.tensor(factors, dtype=torch.float32, device=pool.device)
    values = found.to(torch.float32) * scale.view(1, source.num_layers, source.planes, 1, 1, 1)
    if out.dtype.itemsize < found.dtype.itemsize:
        # Narrowing does not saturate by itself: float16 turns into infinity, FP8 E4M3 into NaN.
        limit = torch.finfo(out.dtype).max
        values.clamp_(-limit, limit)
    out.copy_(values)


def _reblocked(
    found: torch.Tensor, skip_tokens: int, num_blocks: int, block_size: int
) -> torch.Tensor:
    """`[m, L, P, h, bs, D]` as `[num_blocks, L, P, h, block_size, D]`, the same tokens in order."""
    tokens = found.permute(1, 2, 3, 0, 4, 5).flatten(3, 4)[:, :, :, skip_tokens:]
    wanted = num_blocks * block_size
    tokens = tokens[:, :, :, :wanted]
    missing = wanted - tokens.shape[3]
    if missing:
        tokens = torch.nn.functional.pad(tokens, (0, 0, 0, missing))
    shape = (*tokens.shape[:3], num_blocks, block_size, tokens.shape[4])
    return tokens.reshape(shape).permute(3, 0, 1, 2, 4, 5)


def _scales(layout: KVLayout) -> tuple[float, ...]:
    return layout.scales or (1.0,) * (layout.num_layers * layout.planes)
