"""Keeps what the pool will evict next in host memory, and offers it to the tiers below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from baton.engine.block_pool import BlockPool
from baton.engine.tiers.copier import BlockCopier
from baton.engine.tiers.lane import Lane
from baton.engine.tiers.offers import Offers
from baton.engine.tiers.tier_lane import TierLane

# Blocks of one copy: so many that it is worth starting, so few that it ends soon.
_BATCH_BLOCKS: Final = 128
# How many of the blocks that are evicted next are copied in advance: a long prompt's worth, since
# it evicts as many at once.
_LONGEST_WINDOW: Final = 2048
# So many blocks must have come or gone before it is worth looking again.
_MANY_CHANGES: Final = 32


class WriteBack:
    """Copies blocks ahead of their eviction, never in a step's way.

    The blocks that will be evicted next are copied while they are still there; an eviction never
    waits. The copied blocks are not held: when one was evicted before its
    copy was over, the copy is thrown away and the block counts as dropped. A copy that is good is
    in host memory from then on, and goes to each lower tier as that has time for it.
    """

    def __init__(
        self,
        pool: BlockPool,
        host: BlockPool,
        copier: BlockCopier,
        lane: Lane,
        lower: Sequence[TierLane],
    ) -> None:
        self._pool = pool
        self._host = host
        self._copier = copier
        self._lane = lane
        self._offers = [Offers(host, tier) for tier in lower]
        # Host memory must have room for more, or copies of copies would chase each other out.
        self._window = min(pool.num_blocks, host.num_blocks * 3 // 4, _LONGEST_WINDOW)
        self._many_changes = min(_MANY_CHANGES, max(1, self._window // 16))
        self._looked_at = -self._many_changes
        self._is_copying = False
        self.num_stored = 0
        self.num_dropped = 0
        pool.on_evict = self._evicted

    @property
    def is_busy(self) -> bool:
        """Whether a copy is under way."""
        return self._is_copying

    def advance(self) -> None:
        """Starts the next copy, if there is something to copy and none is under way."""
        changes = self._pool.num_changes
        if self._is_copying or changes - self._looked_at < self._many_changes:
            return
        blocks = self._next_blocks()
        slots = self._host.allocate(min(len(blocks), self._host.num_available))
        blocks = blocks[: len(slots)]
        if not blocks:
            self._looked_at = changes
            self._host.release(slots)
            return
        ids = [block_id for block_id, _ in blocks]
        ages = [self._pool.age(block_id) for block_id in ids]
        self._is_copying = self._lane.submit(
            lambda: self._copier.read(ids, slots),
            lambda _: self._copied(blocks, ages, slots),
        )
        if not self._is_copying:
            self._host.release(slots)

    def _next_blocks(self) -> list[tuple[int, bytes]]:
        """Block ids and hashes."""
        wanted = self._window - self._pool.num_free
        found: list[tuple[int, bytes]] = []
        if wanted > 0:
            for block_id, block_hash in self._pool.oldest_cached(wanted):
                if block_hash not in self._host:
                    found.append((block_id, block_hash))
                    if len(found) == _BATCH_BLOCKS:
                        break
        return found

    def _copied(self, blocks: list[tuple[int, bytes]], ages: list[int], slots: list[int]) -> None:
        self._is_copying = False
        good = []
        for (block_id, block_hash), age, slot in zip(blocks, ages, slots, strict=True):
            if self._pool.age(block_id) == age:
                self._host.publish(slot, block_hash)
                good.append(block_hash)
        self.num_stored += len(good)
        self._host.release(slots)
        for offers in self._offers:
            offers.add(good)
        self.advance()

    def _evicted(self, block_hash: bytes) -> None:
        if block_hash not in self._host:
            self.num_dropped += 1
