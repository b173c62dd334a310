"""Checks and preparation of a pool tensor before a wire registers it."""

from __future__ import annotations

import mmap

import torch

from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.mapping import Grid
from baton.kvtransfer.wire import Route, RunIds
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


def runs_view(memory: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The runs of `grid` in a contiguous `memory`, uint8 `[count, run_bytes]`, no copy."""
    raw = memory.view(-1).view(torch.uint8)
    return raw.as_strided((grid.count, grid.run_bytes), (grid.stride, 1), grid.offset)


def gather_runs(route: Route, runs: RunIds) -> torch.Tensor:
    """The bytes of a route's local runs, uint8 `[len(runs), run_bytes]`; runs of one grid.

    A view where they are adjacent, else a copy.
    """
    grid = route.local[int(runs[0]) // route.local[0].count]
    view = runs_view(route.source, grid)
    return take_rows(view, runs % route.local[0].count)


def take_rows(view: torch.Tensor, rows: RunIds) -> torch.Tensor:
    """Rows of `view`: a view of it where they are adjacent and gapless, else a copy."""
    first = int(rows[0])
    if are_adjacent(rows) and view.stride(0) == view.shape[1]:
        return view[first : first + len(rows)]
    return view[torch.from_numpy(rows.astype("int64")).to(view.device)]


def are_adjacent(rows: RunIds) -> bool:
    """Whether each is the one before plus 1."""
    return bool(rows[-1] - rows[0] + 1 == len(rows) and (rows[1:] > rows[:-1]).all())


def copy_runs(route: Route, local: RunIds, pool: torch.Tensor, remote: RunIds) -> None:
    """Copies local runs of `route` into runs of the peer's `pool`, in this process."""
    target = runs_view(pool, route.remote)
    target[torch.from_numpy(remote.astype("int64"))] = gather_runs(route, local)
