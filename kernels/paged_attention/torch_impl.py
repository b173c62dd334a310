"""Paged attention in batched torch operations: what production runs on a CPU.

Rows are grouped by query length, so that all decodes are one group, and each group is cut into
chunks whose gathered keys and values stay in cache. Within a chunk there is no Python per row: one
gather, two batched matrix products and a softmax. Longest contexts come first, so a chunk pads
little.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# elements of gathered keys and values per chunk, and of scores per query tile: about 1 MiB of
# float32 each, which stays in a core's caches. 8 rows a chunk at 500 tokens x 4 heads x 32.
_GATHER_ELEMENTS = 1 << 18
_SCORE_ELEMENTS = 1 << 19
_MIN_QUERY_TILE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scoring:
    scale: float
    sliding_window: int | None
    soft_cap: float | None


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
) -> Tensor:
    """Attention of the whole ragged batch; arguments as the public operator's."""
    scoring = _Scoring(scale=scale, sliding_window=sliding_window, soft_cap=soft_cap)
    num_rows, row_elements = context_lens.shape[0], 2 * kv.shape[2] * kv.shape[4]
    if max_query_len == 1 and q.shape[0] == num_rows > 0:
        longest = int(context_lens.max())
        if num_rows * longest * row_elements <= _GATHER_ELEMENTS:
            # a small decode batch in row order is one chunk as it stands
            return _attend(q[:, None], kv, context_lens.long(), block_tables, scoring)[:, 0]
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for query_len, rows in _rows_by_query_len(query_start, q.shape[0], max_query_len):
        lens = context_lens.long() if rows is None else context_lens[rows].long()
        lens, order = lens.sort(descending=True)
        rows = order if rows is None else rows[order]
        # tokens: [rows, query_len], the tokens of q that belong to each row
        tokens = query_start[rows].long()[:, None] + torch.arange(query_len, device=q.device)
        for part in _chunks(lens.tolist(), kv, query_len, sliding_window):
            chunk_out = _attend(q[tokens[part]], kv, lens[part], block_tables[rows[part]], scoring)
            out[tokens[part]] = chunk_out
    return out


def _rows_by_query_len(
    query_start: Tensor, num_tokens: int, max_query_len: int
) -> Iterator[tuple[int, Tensor | None]]:
    """Yield each query length present and the rows that have it; None stands for all rows."""
    num_rows = query_start.shape[0] - 1
    if num_tokens == 0:
        return
    if max_query_len == 1 and num_tokens == num_rows:
        yield 1, None
        return
    query_lens = query_start.diff()
    for query_len in sorted(set(query_lens.tolist())):
        if query_len > 0:
            yield query_len, (query_lens == query_len).nonzero().squeeze(1)


def _chunks(
    lens: list[int], kv: Tensor, query_len: int, sliding_window: int | None
) -> Iterator[slice]:
    """Cut rows, sorted by falling context length, into runs of bounded gather size."""
    _, _, num_kv_heads, block_size, head_dim = kv.shape
    row_elements = 2 * num_kv_heads * head_dim
    start = 0
    while start < len(lens):
        span = lens[start]
        if sliding_window is not None:
            span = min(span, sliding_window + query_len + block_size)
        stop = start + max(1, _GATHER_ELEMENTS // (row_elements * max(span, block_size)))
        yield slice(start, stop)
        start = stop


def _attend(q: Tensor, kv: Tensor, lens: Tensor, tables: Tensor, scoring: _Scoring) -> Tensor:
    """Attend q [rows, query_len, q_heads, head_dim] to its rows' pages; lens fall, tables match."""
    num_rows, query_len, num_q_heads, head_dim = q.shape
    num_kv_heads, block_size = kv.shape[2:4]
    keys, values, first = _gather(kv, lens, tables, query_len, scoring.sliding_window)
    # position of each query and each gathered key: [rows, query_len], [rows, keys]
    query_at = (lens - query_len)[:, None] + torch.arange(query_len, device=q.device)
    key_at = (first * block_size)[:, None] + torch.arange(keys.shape[2], device=q.device)
    # [kv_heads, rows, group, query_len, head_dim]
    heads = q.view(num_rows, query_len, num_kv_heads, -1, head_dim).permute(2, 0, 3, 1, 4)
    heads = heads * scoring.scale
    tile = max(_MIN_QUERY_TILE, _SCORE_ELEMENTS // (num_rows * num_q_heads * max(keys.shape[2], 1)))
    if query_len <= tile:
        out = _attend_tile(heads, keys, values, query_at, key_at, scoring)
    else:
        out = torch.cat(
            [
                _attend_tile(heads[:, :, :, at], keys, values, query_at[:, at], key_at, scoring)
                for at in (slice(i, i + tile) for i in range(0, query_len, tile))
            ],
            dim=3,
        )
    return out.permute(1, 3, 0, 2, 4).reshape(num_rows, query_len, num_q_heads, head_dim)


def _gather(
    kv: Tensor, lens: Tensor, tables: Tensor, query_len: int, sliding_window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Copy the visible pages: keys, values [kv_heads, rows, keys, head_dim], first page [rows]."""
    num_blocks, _, num_kv_heads, block_size, head_dim = kv.shape
    num_rows = lens.shape[0]
    pages = (lens + (block_size - 1)) // block_size
    first = torch.zeros_like(lens)
    if sliding_window is not None:
        first = (lens - query_len - sliding_window + 1).clamp_(min=0) // block_size
    num_pages = max(int((pages - first).max()), 1)
    if sliding_window is None:
        used = tables[:, :num_pages]
    else:
        columns = first[:, None] + torch.arange(num_pages, device=lens.device)
        used = tables.gather(1, columns.clamp_(max=tables.shape[1] - 1))
    # unused entries may be anything; any valid block will do, its scores are masked
    flat = used.reshape(-1).clamp(0, num_blocks - 1)
    # index_select over a permuted view copies runs of block_size * head_dim and no more
    picked = kv.permute(1, 2, 0, 3, 4).index_select(2, flat)
    keys, values = picked.view(2, num_kv_heads, num_rows, num_pages * block_size, head_dim)
    return keys, values, first


def _attend_tile(
    q: Tensor, keys: Tensor, values: Tensor, query_at: Tensor, key_at: Tensor, scoring: _Scoring
) -> Tensor:
    """Attend scaled q [kv_heads, rows, group, queries, head_dim]; returns the same shape."""
    num_kv_heads, num_rows, group, num_queries, head_dim = q.shape
    if num_rows == 1:
        # one row: keys after its last query are invisible to the whole tile
        visible = max(min(int(query_at[0, -1] - key_at[0, 0]) + 1, keys.shape[2]), 1)
        keys, values, key_at = keys[:, :, :visible], values[:, :, :visible], key_at[:, :visible]
    flat = q.reshape(num_kv_heads, num_rows, group * num_queries, head_dim)
    scores = torch.matmul(flat, keys.transpose(2, 3))
    if scoring.soft_cap is not None:
        scores.div_(scoring.soft_cap).tanh_().mul_(scoring.soft_cap)
    # [rows, queries, keys]
    hidden = key_at[:, None] > query_at[..., None]
    if scoring.sliding_window is not None:
        hidden |= key_at[:, None] <= query_at[..., None] - scoring.sliding_window
    by_query = scores.view(num_kv_heads, num_rows, group, num_queries, -1)
    by_query.masked_fill_(hidden[None, :, None], -torch.inf)
    out = torch.matmul(scores.softmax(-1), values)
    if out.isnan().any():
        out = _attend_clean(scores, values, key_at, query_at)
    return out.view(num_kv_heads, num_rows, group, num_queries, head_dim)


def _attend_clean(scores: Tensor, values: Tensor, key_at: Tensor, query_at: Tensor) -> Tensor:
    """Mix values again without slots past the context, whose stale NaN would outlive weight 0.

    Rare, so the common path does not pay for it: a pool that was never written, a request whose
    own values are NaN (it alone keeps them), or padding rows that see no key (they get zeros).
    """
    unwritten = key_at > query_at[:, -1:]
    weights = scores.softmax(-1).masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0.0)
    return torch.matmul(weights, values.masked_fill(unwritten[None, :, :, None], 0.0))
