"""Which blocks a worker has anywhere, for routers: in its pool, in host memory or on its disk."""

from __future__ import annotations

from dataclasses import replace

from baton.engine.block_pool import BlockPool
from baton.protos.types import KvEvents


class Reach:
    """Counts the places that have a block, and tells when the first one gets it or the last one
    loses it."""

    def __init__(self, host: BlockPool) -> None:
        self._host = host
        self._places: dict[bytes, int] = {}
        # What changed in lower tiers since the last drain, with the number of places before it.
        self._before: dict[bytes, int] = {}

    def apply(self, changes: KvEvents) -> None:
        """Changes of one place: nothing is removed that was not stored there."""
        for block_hash in changes.removed:
            self._add(block_hash, -1)
        for block_hash in changes.stored:
            self._add(block_hash, 1)

    def drain(self, pool_changes: KvEvents) -> KvEvents:
        """The pool's changes, with what they and those of other places add up to."""
        self.apply(pool_changes)
        self.apply(self._host.drain_events())
        kept, lost = [], []
        for block_hash, before in self._before.items():
            now = self._places.get(block_hash, 0)
            if now and not before:
                kept.append(block_hash)
            elif before and not now:
                lost.append(block_hash)
        self._before.clear()
        return replace(pool_changes, kept=tuple(kept), lost=tuple(lost))

    def snapshot(self, pool_snapshot: KvEvents) -> KvEvents:
        """With everything that was told so far; what was not is still to come."""
        told = [h for h in self._places if self._before.get(h, 1)]
        gone = [h for h, before in self._before.items() if before and h not in self._places]
        return replace(pool_snapshot, kept=(*told, *gone))

    def _add(self, block_hash: bytes, change: int) -> None:
        count = self._places.get(block_hash, 0)
        self._before.setdefault(block_hash, count)
        if count + change:
            self._places[block_hash] = count + change
        else:
            del self._places[block_hash]
