"""What goes on from host memory to one lower tier, as fast as that tier takes it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from baton.engine.block_pool import BlockPool
from baton.engine.tiers.tier_lane import TierLane

# Blocks of one call: so many that it is worth it, so few that loads get in between.
_BATCH_BLOCKS: Final = 128


class Offers:
    """Blocks that wait by name, oldest first: their slots are taken out of use only while the tier
    reads them. What host memory evicts before its turn counts as dropped.
    """

    def __init__(self, host: BlockPool, tier: TierLane) -> None:
        self._host = host
        self._tier = tier
        self._batch = min(_BATCH_BLOCKS, tier.max_storing)
        self._waiting: dict[bytes, None] = {}

    def add(self, hashes: Iterable[bytes]) -> None:
        """They are in host memory now."""
        self._waiting |= dict.fromkeys(hashes)
        excess = max(0, len(self._waiting) - self._host.num_blocks)
        self._take(excess)
        self._tier.dropped(excess)
        self._advance()

    def _advance(self) -> None:
        while self._waiting and self._tier.room >= self._batch:
            taken = self._take(self._batch)
            hashes = [block_hash for block_hash in taken if block_hash in self._host]
            self._tier.dropped(len(taken) - len(hashes))
            slots = [slot for block_hash in hashes for slot in self._host.match((block_hash,))]
            self._host.share(slots)
            if hashes and not self._tier.store(hashes, slots, lambda s=slots: self._stored(s)):  # type: ignore[misc]
                self._host.release(slots)

    def _stored(self, slots: list[int]) -> None:
        self._host.release(slots)
        self._advance()

    def _take(self, count: int) -> list[bytes]:
        taken = list(islice(self._waiting, count))
        for block_hash in taken:
            del self._waiting[block_hash]
        return taken
