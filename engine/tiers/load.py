"""Fills the blocks that a request was given from host memory."""

from __future__ import annotations

from dataclasses import dataclass

from baton.engine.block_pool import BlockPool
from baton.engine.request import Request
from baton.engine.tiers.copier import BlockCopier
from baton.engine.tiers.lane import Lane
from baton.engine.tiers.rate import Rate
from baton.protos.clock import Clock


@dataclass(slots=True)
class _Load:
    """`block_ids` is what the request had, once it is gone: the copy still writes there."""

    request: Request
    num_blocks: int
    block_ids: list[int] | None = None
    is_done: bool = False


class Loader:
    """Requests whose blocks are being filled, or are, until they go on."""

    def __init__(
        self, pool: BlockPool, host: BlockPool, copier: BlockCopier, lane: Lane, clock: Clock
    ) -> None:
        self._pool = pool
        self._host = host
        self._copier = copier
        self._lane = lane
        self._clock = clock
        self._loads: dict[int, _Load] = {}
        self.rate = Rate()

    @property
    def requests(self) -> list[Request]:
        """Those that the engine still knows."""
        return [load.request for load in self._loads.values() if load.block_ids is None]

    @property
    def is_busy(self) -> bool:
        """Whether a copy is under way."""
        return any(not load.is_done for load in self._loads.values())

    @property
    def orphans(self) -> list[list[int]]:
        """Blocks of requests that ended, and that a copy still writes."""
        return [load.block_ids for load in self._loads.values() if load.block_ids is not None]

    def start(self, request: Request, slots: list[int], first: int) -> bool:
        """Copies these slots to the request's blocks from index `first` on. False: not now."""
        block_ids = request.block_ids[first : first + len(slots)]
        load = _Load(request, len(slots))
        self._host.share(slots)
        began_s = self._clock.now_s()

        def done(_: None) -> None:
            self.rate.observe(len(slots), self._clock.now_s() - began_s)
            self._done(load, slots)

        if not self._lane.submit(lambda: self._copier.write(slots, block_ids), done, urgent=True):
            self._host.release(slots)
            return False
        self._loads[request.epoch] = load
        return True

    @property
    def first_done(self) -> Request | None:
        """The request that may go on next."""
        return min(
            (load.request for load in self._loads.values() if load.is_done),
            key=lambda request: request.order,
            default=None,
        )

    def take(self, request: Request) -> int:
        """It goes on: how many blocks were filled."""
        return self._loads.pop(request.epoch).num_blocks

    def drop(self, request: Request) -> None:
        """It ended. Its blocks are out of use until nothing writes them."""
        load = self._loads.get(request.epoch)
        if load is None:
            return
        if load.is_done:
            del self._loads[request.epoch]
        else:
            load.block_ids, request.block_ids = request.block_ids, []

    def _done(self, load: _Load, slots: list[int]) -> None:
        self._host.release(slots)
        load.is_done = True
        if load.block_ids is not None:
            del self._loads[load.request.epoch]
            self._pool.release(load.block_ids)
