"""Brings prefixes back into the pool for nobody's turn: for what another worker is to read, or for
blocks that another one is about to write after them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baton.engine.block_pool import BlockPool
from baton.engine.request import Request, RequestState
from baton.engine.tiers.fetch import Fetcher
from baton.engine.tiers.load import Loader
from baton.protos.clock import Clock
from baton.protos.types import GenerateRequest


@dataclass(frozen=True, slots=True)
class _Recall:
    headroom: Callable[[], int]
    done: Callable[[], None]


class Recaller:
    """Prefixes on their way, each as a request that the scheduler never sees.

    hashes: of a request's whole blocks that may be found. is_quicker: whether so many blocks are
    loaded from host memory in less time than they are computed in.
    """

    def __init__(
        self,
        pool: BlockPool,
        host: BlockPool,
        fetcher: Fetcher,
        loader: Loader,
        clock: Clock,
        hashes: Callable[[Request], Sequence[bytes]],
        is_quicker: Callable[[int], bool],
    ) -> None:
        self._pool = pool
        self._host = host
        self._fetcher = fetcher
        self._loader = loader
        self._clock = clock
        self._hashes = hashes
        self._is_quicker = is_quicker
        self._numbers = itertools.count(1)
        self._recalls: dict[int, _Recall] = {}
        self.num_loaded = 0

    def start(
        self,
        prefix: GenerateRequest,
        headroom: Callable[[], int],
        done: Callable[[], None],
        *,
        near: bool,
    ) -> None:
        """`done`, exactly once, when what is found of it is in the pool; perhaps at once.

        headroom: how many blocks must be left for others. near: lower tiers are not asked.
        """
        number = next(self._numbers)
        state, now_s = RequestState.FETCHING, self._clock.now_s()
        request = Request(prefix, arrival=number, state=state, now_s=now_s)
        request.epoch = number
        self._recalls[number] = _Recall(headroom, done)
        hashes = self._hashes(request)
        missing = hashes[len(self._pool.match(hashes)) :]
        here = self._host.match(missing)
        if near or not self._fetcher.start(request, missing[len(here) :]):
            self._load(request)

    @property
    def has_done(self) -> bool:
        """Whether advance() would do something."""
        return self._fetcher.has_done or self._loader.first_done is not None

    @property
    def next_deadline_s(self) -> float | None:
        """When has_done becomes true whatever happens."""
        return self._fetcher.next_deadline_s

    @property
    def is_busy(self) -> bool:
        """Whether a copy is under way."""
        return self._loader.is_busy

    @property
    def blocks(self) -> list[list[int]]:
        """Of the pool, that are being filled or were and are not given back yet."""
        return [request.block_ids for request in self._loader.requests]

    def advance(self) -> None:
        """Those whose blocks came, or did not come in time, go on."""
        for request in self._fetcher.take_done():
            self._load(request)
        while (loaded := self._loader.first_done) is not None:
            first = loaded.num_published_blocks
            num_blocks = self._loader.take(loaded)
            self.num_loaded += num_blocks
            for index in range(first, first + num_blocks):
                self._pool.publish(loaded.block_ids[index], loaded.block_hashes[index])
            self._pool.release(loaded.block_ids)
            self._recalls.pop(loaded.epoch).done()

    def _load(self, request: Request) -> None:
        """From host memory to the pool, as far as it is worth it and there is room."""
        hashes = self._hashes(request)
        shared = self._pool.match(hashes)
        slots = self._host.match(hashes[len(shared) :])
        if slots and self._has_room(request, shared, len(slots)) and self._is_quicker(len(slots)):
            self._pool.share(shared)
            request.block_ids = shared + self._pool.allocate(len(slots))
            request.num_published_blocks = len(shared)
            if self._loader.start(request, slots, len(shared)):
                return
            self._pool.release(request.block_ids)
        self._recalls.pop(request.epoch).done()

    def _has_room(self, request: Request, shared: Sequence[int], count: int) -> bool:
        available = self._pool.num_available - self._pool.num_unreferenced(shared)
        return count + self._recalls[request.epoch].headroom() <= available
