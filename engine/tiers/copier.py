"""Blocks between a pool and host memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from baton.protos.errors import ConfigError


def host_memory(num_slots: int, block_bytes: int, device: torch.device) -> Tensor:
    """uint8 [num_slots, block_bytes], page-locked for a GPU. ConfigError if there is not enough."""
    try:
        return torch.empty(
            (num_slots, block_bytes), dtype=torch.uint8, pin_memory=device.type == "cuda"
        )
    except RuntimeError as error:
        gib = num_slots * block_bytes / (1 << 30)
        raise ConfigError(
            f"kv_tiers.cpu_gib: {gib:.1f} GiB of host memory cannot be had: {error}",
            param="kv_tiers.cpu_gib",
        ) from error


class BlockCopier(Protocol):
    """Moves blocks between the pool and host memory; each call returns when the data is there."""

    def read(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        """Pool to host memory."""
        ...

    def write(self, slots: Sequence[int], block_ids: Sequence[int]) -> None:
        """Host memory to the pool."""
        ...


class Copier:
    """Copies blocks, each as one run of bytes. Two threads may use it, one for each direction.

    On a GPU each direction has a stream of its own beside the model's. That needs no order between
    the streams: a block is read only after the step that wrote it was waited for, and what is read
    of one that was evicted meanwhile is thrown away; a block that is written is nobody else's until
    the copy is over.
    """

    def __init__(self, pool: Tensor, memory: Tensor) -> None:
        """pool: [num_blocks, ...], contiguous; memory: uint8 [num_slots, bytes of a block]."""
        self._pool = pool.view(torch.uint8).view(pool.shape[0], -1)
        self._memory = memory
        is_cuda = pool.device.type == "cuda"
        self._streams = [_stream(pool.device) if is_cuda else None for _ in range(2)]

    def read(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        """Pool to host memory; returns when the data is there."""
        pairs = zip(slots, block_ids, strict=True)
        self._copy(self._streams[0], self._memory, self._pool, pairs)

    def write(self, slots: Sequence[int], block_ids: Sequence[int]) -> None:
        """Host memory to the pool; returns when the data is there."""
        pairs = zip(block_ids, slots, strict=True)
        self._copy(self._streams[1], self._pool, self._memory, pairs)

    def _copy(
        self,
        stream: torch.cuda.Stream | None,
        target: Tensor,
        source: Tensor,
        pairs: Iterable[tuple[int, int]],
    ) -> None:
        here: AbstractContextManager[object] = nullcontext()
        if stream is not None:
            here = torch.cuda.stream(stream)
        with torch.inference_mode(), here:
            for to, of in pairs:
                target[to].copy_(source[of], non_blocking=True)
        if stream is not None:
            stream.synchronize()


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch ships none
