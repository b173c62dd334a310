"""Ranks as threads of one process: the same messages and gloo group, but no interpreters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import distributed

from baton.engine.parallel.follower import follow
from baton.engine.parallel.group import TorchGroup
from baton.engine.parallel.hosts import RankHandle
from baton.engine.parallel.links import RankSpec
from baton.engine.parallel.shards import Shards

T = TypeVar("T")


def on_ranks(size: int, run: Callable[[TorchGroup], T]) -> list[T]:
    """`run(group)` on each rank; the results in the order of the ranks."""
    store = distributed.HashStore()

    def rank(index: int) -> T:
        return run(TorchGroup(store, Shards(index, size), torch.device("cpu"), "127.0.0.1"))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(rank, range(size)))


class ThreadRanks:
    """A RankHost whose ranks are threads."""

    address = "127.0.0.1"

    def device(self, rank: int, device: str) -> str:
        return device

    def start(self, spec: RankSpec) -> RankHandle:
        return ThreadRank(spec)


class ThreadRank:
    def __init__(self, spec: RankSpec) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, args=(spec,), daemon=True)
        self._thread.start()

    def ended(self) -> str | None:
        return None if self._thread.is_alive() else f"its thread ended with {self.error}"

    def stop(self) -> None:
        self._thread.join(60.0)
        assert not self._thread.is_alive()

    def _main(self, spec: RankSpec) -> None:
        try:
            follow(spec)
        except Exception as error:
            self.error = error
