"""The bounded buffer in which blocks are converted on their way to an unlike pool.

It is cut into a few equal chambers. A push is done in pieces of at most one chamber each, and a
piece keeps its chamber until it is written; so converting the next piece overlaps with writing
this one, and no push, however large, takes more memory.
"""

from __future__ import annotations

from typing import Final

import torch

from baton.kvtransfer.mapping import Grid, KVMap
from baton.kvtransfer.reshape import convert_blocks
from baton.protos.errors import LayoutMismatchError

NUM_CHAMBERS: Final = 4
# Runs on a GPU are copied fastest from aligned addresses.
_ALIGNMENT: Final = 512


class Staging:
    """`buffer` is uint8 `[NUM_CHAMBERS * chamber_bytes]` on the pool's device."""

    def __init__(self, num_bytes: int, pool: torch.Tensor) -> None:
        self.chamber_bytes = max(num_bytes // NUM_CHAMBERS // _ALIGNMENT, 1) * _ALIGNMENT
        self.buffer = torch.zeros(
            NUM_CHAMBERS * self.chamber_bytes, dtype=torch.uint8, device=pool.device
        )
        self._pool = pool
        self._free = list(range(NUM_CHAMBERS))

    def take(self) -> int | None:
        """A free chamber, or None while all are in use."""
        return self._free.pop() if self._free else None

    def give_back(self, chamber: int) -> None:
        if chamber in self._free:
            raise AssertionError(f"chamber {chamber} is free already")
        self._free.append(chamber)

    @property
    def num_used(self) -> int:
        return NUM_CHAMBERS - len(self._free)

    def blocks_per_chamber(self, kv_map: KVMap) -> int:
        """Receiver's blocks that one piece can be. Raises LayoutMismatchError if not even one."""
        block_bytes = kv_map.sent_layout.block_bytes
        if block_bytes > self.chamber_bytes:
            raise LayoutMismatchError(
                f"one block of the receiver takes {block_bytes} bytes to convert, but the staging"
                f" buffer has parts of {self.chamber_bytes}; raise staging_bytes to at least"
                f" {block_bytes * NUM_CHAMBERS}",
                param="staging_bytes",
            )
        return self.chamber_bytes // block_bytes

    def grids(self, kv_map: KVMap) -> tuple[Grid, ...]:
        """The runs of converted blocks, chamber after chamber."""
        run_bytes = kv_map.sent_layout.block_bytes // kv_map.runs_per_block
        count = self.blocks_per_chamber(kv_map) * kv_map.runs_per_block
        return tuple(
            Grid(
                offset=chamber * self.chamber_bytes,
                run_bytes=run_bytes,
                stride=run_bytes,
                count=count,
            )
            for chamber in range(NUM_CHAMBERS)
        )

    def fill(
        self,
        chamber: int,
        kv_map: KVMap,
        local_blocks: torch.Tensor,
        skip_tokens: int,
        num_blocks: int,
    ) -> None:
        """Converts into the chamber's first `num_blocks` blocks. See `convert_blocks`."""
        sent = kv_map.sent_layout
        start = chamber * self.chamber_bytes
        raw = self.buffer[start : start + num_blocks * sent.block_bytes]
        out = raw.view(getattr(torch, sent.dtype)).view(num_blocks, *sent.block_shape)
        convert_blocks(self._pool, local_blocks, skip_tokens, kv_map, out)
        if self.buffer.is_cuda:
            # Wires read this memory without knowing of this thread's stream.
            torch.cuda.current_stream(self.buffer.device).synchronize()
