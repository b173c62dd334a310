"""What attention needs to know of a batch, worked out once for all layers.

For the torch implementation rows are grouped by query length, so that all decodes are one group,
and each group is cut into chunks whose gathered keys and values stay in cache. Longest contexts
come first, so a chunk pads little.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# elements of gathered keys and values per chunk: about 1 MiB of float32, which stays in a core's
# caches. 8 rows a chunk at 500 tokens x 4 heads x 32.
_GATHER_ELEMENTS = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows of one query length that are attended together.

    tokens: int64 [rows, query_len], where their queries are in q; None: q itself, one token a row.
    blocks: [rows * pages], the pages to gather, row after row; all of them exist.
    hidden: bool [rows, query_len, pages * block_size], the keys that a query must not see.
    unwritten: bool [rows, 1, pages * block_size], the keys past a row's context.
    """

    tokens: Tensor | None
    blocks: Tensor
    hidden: Tensor
    unwritten: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """The chunks of a batch, for one sliding window."""

    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """How a batch's decodes are cut into items, worked out on the device for all layers.

    row_item: int32 [rows + 1], item_row: int32 [max_items], as `plan_kernel` says.
    counts: int32 [rows, kv_heads], zeros between launches.
    """

    row_item: Tensor
    item_row: Tensor
    counts: Tensor


AnyPlan = AttentionPlan | DevicePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Shape of one layer's pool: [num_blocks, 2, num_kv_heads, block_size, head_dim]."""

    num_blocks: int
    num_kv_heads: int
    block_size: int
    head_dim: int

    @classmethod
    def of(cls, kv: Tensor) -> "Pages":
        num_blocks, _, num_kv_heads, block_size, head_dim = kv.shape
        return cls(
            num_blocks=num_blocks,
            num_kv_heads=num_kv_heads,
            block_size=block_size,
            head_dim=head_dim,
        )

    def rows_within(self, num_keys: int) -> int:
        """Rows of `num_keys` keys that a chunk may gather; at least one."""
        row_elements = 2 * self.num_kv_heads * self.head_dim * max(num_keys, self.block_size)
        return max(1, _GATHER_ELEMENTS // row_elements)


def build_plan(
    query_start: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    *,
    pages: Pages,
    max_query_len: int,
    sliding_window: int | None,
) -> AttentionPlan:
    """Work out the chunks; arguments as the operator's."""
    lens = context_lens.long()
    num_rows = lens.shape[0]
    if max_query_len > 1 or not _all_decode(query_start, num_rows):
        groups = _rows_by_query_len(query_start)
    elif num_rows <= pages.rows_within(int(lens.max())):
        # a small decode batch in row order is one chunk as it stands
        return AttentionPlan(chunks=(_chunk(None, lens, block_tables, 1, pages, sliding_window),))
    else:
        groups = [(1, torch.arange(num_rows, device=lens.device))]
    chunks: list[Chunk] = []
    for query_len, members in groups:
        group_lens, order = lens[members].sort(descending=True)
        rows = members[order]
        tokens = query_start[rows].long()[:, None] + torch.arange(query_len, device=lens.device)
        for at in _parts(group_lens.tolist(), pages, query_len, sliding_window):
            tables = block_tables[rows[at]]
            chunks.append(
                _chunk(tokens[at], group_lens[at], tables, query_len, pages, sliding_window)
            )
    return AttentionPlan(chunks=tuple(chunks))


def _all_decode(query_start: Tensor, num_rows: int) -> bool:
    return num_rows > 0 and int(query_start[-1]) == num_rows


def _rows_by_query_len(query_start: Tensor) -> list[tuple[int, Tensor]]:
    """Each query length present, and the rows that have it."""
    query_lens = query_start.diff()
    return [
        (query_len, (query_lens == query_len).nonzero().squeeze(1))
        for query_len in sorted(set(query_lens.tolist()))
        if query_len > 0
    ]


def _parts(
    lens: list[int], pages: Pages, query_len: int, sliding_window: int | None
) -> Iterator[slice]:
    """Cut rows, sorted by falling context length, into runs of bounded gather size."""
    start = 0
    while start < len(lens):
        span = lens[start]
        if sliding_window is not None:
            span = min(span, sliding_window + query_len + pages.block_size)
        stop = start + pages.rows_within(span)
        yield slice(start, stop)
        start = stop


def _chunk(
    tokens: Tensor | None,
    lens: Tensor,
    tables: Tensor,
    query_len: int,
    pages: Pages,
    sliding_window: int | None,
) -> Chunk:
    counts = (lens + (pages.block_size - 1)) // pages.block_size
    first = torch.zeros_like(lens)
    if sliding_window is not None:
        first = (lens - query_len - sliding_window + 1).clamp_(min=0) // pages.block_size
    num_pages = max(int((counts - first).max()), 1)
    if sliding_window is None:
        used = tables[:, :num_pages]
    else:
        columns = first[:, None] + torch.arange(num_pages, device=lens.device)
        used = tables.gather(1, columns.clamp_(max=tables.shape[1] - 1))
    # position of each query and each gathered key: [rows, query_len, 1], [rows, 1, keys]
    steps = torch.arange(max(query_len, num_pages * pages.block_size), device=lens.device)
    query_at = (lens - query_len)[:, None, None] + steps[:query_len, None]
    key_at = (first * pages.block_size)[:, None, None] + steps[: num_pages * pages.block_size]
    hidden = key_at > query_at
    if sliding_window is not None:
        hidden |= key_at <= query_at - sliding_window
    return Chunk(
        tokens=tokens,
        # unused entries may be anything; any valid block will do, its scores are masked
        blocks=used.reshape(-1).clamp(0, pages.num_blocks - 1),
        hidden=hidden,
        unwritten=key_at >= lens[:, None, None],
    )
