"""Paged attention in batched torch operations: what production runs on a CPU.

The plan says which rows are attended together and what they may see. Within a chunk there is no
Python per row: one gather, two batched matrix products and a softmax.
"""

import torch
from torch import Tensor

from baton.kernels.paged_attention.plan import AttentionPlan, Chunk, Pages, build_plan

# scores per query tile: about 1 MiB of float32, which stays in a core's caches
_SCORE_ELEMENTS = 1 << 19
_MIN_QUERY_TILE = 64


def paged_attention_torch(
    q: Tensor,
    kv: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    *,
    scale: float,
    max_query_len: int,
    max_context_len: int,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    kv_scale: Tensor | None = None,
    plan: AttentionPlan | None = None,
) -> Tensor:
    """Attention of the whole ragged batch; arguments as the public operator's."""
    if q.shape[0] == 0:
        return torch.empty_like(q)
    if plan is None:
        plan = build_plan(
            query_start,
            context_lens,
            block_tables,
            pages=Pages.of(kv),
            max_query_len=max_query_len,
            sliding_window=sliding_window,
        )
    scaled = q * scale
    if len(plan.chunks) == 1 and plan.chunks[0].tokens is None:
        return _attend(scaled[:, None], kv, plan.chunks[0], soft_cap, kv_scale)[:, 0]
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for chunk in plan.chunks:
        out[chunk.tokens] = _attend(scaled[chunk.tokens], kv, chunk, soft_cap, kv_scale)
    return out


def _gather(kv: Tensor, blocks: Tensor, kv_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The pages [2, kv_heads, blocks, block_size, head_dim], multiplied with their scales."""
    # index_select over a permuted view copies runs of block_size * head_dim and no more
    pages = kv.permute(1, 2, 0, 3, 4)
    if kv_scale is None:
        return pages.index_select(2, blocks)
    # torch moves float8 about as bytes only
    picked = pages.view(torch.uint8).index_select(2, blocks).view(kv.dtype)
    return (picked.float() * kv_scale[:, :, None, None, None]).to(dtype)


def _attend(
    q: Tensor, kv: Tensor, chunk: Chunk, soft_cap: float | None, kv_scale: Tensor | None
) -> Tensor:
    """Attend scaled q [rows, query_len, q_heads, head_dim] to its rows' pages."""
    num_rows, query_len, num_q_heads, head_dim = q.shape
    num_kv_heads = kv.shape[2]
    num_keys = chunk.hidden.shape[2]
    picked = _gather(kv, chunk.blocks, kv_scale, q.dtype)
    keys, values = picked.view(2, num_kv_heads * num_rows, num_keys, head_dim).unbind(0)
    # [kv_heads, rows, group, query_len, head_dim]
    heads = q.view(num_rows, query_len, num_kv_heads, -1, head_dim).permute(2, 0, 3, 1, 4)
    tile = max(_MIN_QUERY_TILE, _SCORE_ELEMENTS // (num_rows * num_q_heads * num_keys))
    if query_len <= tile:
        out = _attend_tile(heads, keys, values, chunk.hidden, chunk.unwritten, soft_cap)
    else:
        parts: list[Tensor] = []
        for start in range(0, query_len, tile):
            at = slice(start, min(start + tile, query_len))
            # one row: keys after the tile's last query are invisible to the whole tile
            seen = num_keys
            if num_rows == 1:
                seen = num_keys - int(chunk.hidden[0, at.stop - 1].flip(0).to(torch.uint8).argmin())
            parts.append(
                _attend_tile(
                    heads[:, :, :, at],
                    keys[:, :seen],
                    values[:, :seen],
                    chunk.hidden[:, at, :seen],
                    chunk.unwritten[:, :, :seen],
                    soft_cap,
                )
            )
        out = torch.cat(parts, dim=3)
    return out.permute(1, 3, 0, 2, 4).reshape(num_rows, query_len, num_q_heads, head_dim)


def _attend_tile(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    hidden: Tensor,
    unwritten: Tensor,
    soft_cap: float | None,
) -> Tensor:
    """Attend scaled q [kv_heads, rows, group, queries, head_dim]; returns the same shape."""
    num_kv_heads, num_rows, group, num_queries, head_dim = q.shape
    flat = q.reshape(num_kv_heads * num_rows, group * num_queries, head_dim)
    scores = torch.bmm(flat, keys.transpose(1, 2))
    if soft_cap is not None:
        scores.div_(soft_cap).tanh_().mul_(soft_cap)
    by_query = scores.view(num_kv_heads, num_rows, group, num_queries, -1)
    by_query.masked_fill_(hidden[:, None], -torch.inf)
    out = torch.bmm(scores.softmax(-1), values)
    if out.isnan().any():
        out = _attend_clean(scores, values, unwritten, num_kv_heads)
    return out.view(num_kv_heads, num_rows, group, num_queries, head_dim)


def _attend_clean(scores: Tensor, values: Tensor, unwritten: Tensor, num_kv_heads: int) -> Tensor:
    """Mix values again without slots past the context, whose stale NaN would outlive weight 0.

    Rare, so the common path does not pay for it: a pool that was never written, a request whose
    own values are NaN (it alone keeps them), or padding rows that see no key (they get zeros).
    """
    weights = scores.softmax(-1).masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0.0)
    unwritten = unwritten.repeat(num_kv_heads, 1, 1).transpose(1, 2)
    return torch.bmm(weights, values.masked_fill(unwritten, 0.0))
