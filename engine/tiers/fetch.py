"""Brings a waiting request's blocks from lower tiers into host memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from baton.engine.block_pool import BlockPool
from baton.engine.request import Request
from baton.engine.tiers.tier_lane import TierLane
from baton.protos.clock import Clock

# A fetch that takes longer goes on, but nobody waits for it any more.
_SHORTEST_WAIT_S: Final = 0.25
_LONGEST_WAIT_S: Final = 30.0
_UNKNOWN_WAIT_S: Final = 5.0


@dataclass(slots=True)
class _Fetch:
    """One request's blocks from `hashes[0]` on, being looked for in tier `place`."""

    request: Request
    hashes: Sequence[bytes]
    deadline_s: float
    place: int = 0


class Fetcher:
    """Asks tier after tier for what the ones above it lack, each only if it is worth the time.

    compute_s: seconds in which the engine computes so many blocks; None: not measured yet.
    """

    def __init__(
        self,
        host: BlockPool,
        lower: Sequence[TierLane],
        clock: Clock,
        compute_s: Callable[[int], float | None],
    ) -> None:
        self._host = host
        self._lower = lower
        self._clock = clock
        self._compute_s = compute_s
        self._waiting: dict[int, _Fetch] = {}
        self._done: list[Request] = []

    @property
    def requests(self) -> list[Request]:
        """Those that wait, or need not any more."""
        return [*(fetch.request for fetch in self._waiting.values()), *self._done]

    @property
    def next_deadline_s(self) -> float | None:
        """When a wait is over whatever happens, on the engine's clock."""
        return min((fetch.deadline_s for fetch in self._waiting.values()), default=None)

    def start(self, request: Request, hashes: Sequence[bytes]) -> bool:
        """Whether a tier was asked for these blocks, so that the request had better wait."""
        compute_s = self._compute_s(len(hashes))
        wait_s = _UNKNOWN_WAIT_S
        if compute_s is not None:
            wait_s = min(max(compute_s, _SHORTEST_WAIT_S), _LONGEST_WAIT_S)
        fetch = _Fetch(request, hashes, self._clock.now_s() + wait_s)
        if not self._ask(fetch):
            return False
        self._waiting[request.epoch] = fetch
        return True

    def take_done(self) -> list[Request]:
        """Requests whose wait is over, those that waited long enough among them."""
        now_s = self._clock.now_s()
        late = [fetch.request for fetch in self._waiting.values() if fetch.deadline_s <= now_s]
        for request in late:
            del self._waiting[request.epoch]
        done, self._done = self._done, []
        return done + late

    @property
    def has_done(self) -> bool:
        """Whether take_done() would return something."""
        deadline_s = self.next_deadline_s
        late = deadline_s is not None and deadline_s <= self._clock.now_s()
        return late or bool(self._done)

    def drop(self, request: Request) -> None:
        """It ended. What is under way for it is kept for others."""
        self._waiting.pop(request.epoch, None)
        if request in self._done:
            self._done.remove(request)

    def _ask(self, fetch: _Fetch) -> bool:
        """Asks the first tier from `fetch.place` on that would be quicker than computing."""
        while fetch.hashes and fetch.place < len(self._lower):
            tier = self._lower[fetch.place]
            if self._is_quicker(tier, len(fetch.hashes)):
                if tier.lookup(fetch.hashes, lambda count: self._found(fetch, count)):
                    return True
            else:
                tier.declined(0)
            fetch.place += 1
        return False

    def _found(self, fetch: _Fetch, count: int) -> None:
        tier = self._lower[fetch.place]
        count = min(count, len(fetch.hashes), self._host.num_available)
        if count and not self._is_quicker(tier, count):
            tier.declined(count)
            count = 0
        if count:
            slots = self._host.allocate(count)
            hashes = fetch.hashes[:count]
            if tier.load(hashes, slots, lambda got: self._loaded(fetch, slots, got)):
                return
            self._host.release(slots)
        self._go_on(fetch)

    def _loaded(self, fetch: _Fetch, slots: list[int], count: int) -> None:
        for block_hash, slot in zip(fetch.hashes[:count], slots, strict=False):
            self._host.publish(slot, block_hash)
        self._host.release(slots)
        fetch.hashes = fetch.hashes[count:]
        self._go_on(fetch)

    def _go_on(self, fetch: _Fetch) -> None:
        fetch.place += 1
        # When nobody waits any more, what was begun is enough.
        if fetch.request.epoch in self._waiting and not self._ask(fetch):
            del self._waiting[fetch.request.epoch]
            self._done.append(fetch.request)

    def _is_quicker(self, tier: TierLane, num_blocks: int) -> bool:
        compute_s = self._compute_s(num_blocks)
        return compute_s is None or tier.estimate_s(num_blocks) < compute_s
