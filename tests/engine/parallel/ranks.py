"""Ranks as threads of one process: the same gloo group, without starting interpreters."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import distributed

from baton.engine.parallel.group import TorchGroup
from baton.engine.parallel.shards import Shards

T = TypeVar("T")


def on_ranks(size: int, run: Callable[[TorchGroup], T]) -> list[T]:
    """`run(group)` on each rank; the results in the order of the ranks."""
    store = distributed.HashStore()

    def rank(index: int) -> T:
        return run(TorchGroup(store, Shards(index, size), torch.device("cpu"), "127.0.0.1"))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(rank, range(size)))
