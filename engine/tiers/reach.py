"""Which blocks a worker has anywhere, for routers: in its pool, in host memory or on its disk."""

from __future__ import annotations

from dataclasses import replace

from baton.engine.block_pool import BlockPool
from baton.protos.types import KvEvents


class Reach:
    """Tells when a block comes to the first place that has it and when it leaves the last one: of
    all places, and where there are lower tiers also of the pool and host memory alone."""

    def __init__(self, host: BlockPool, *, has_lower: bool) -> None:
        self._host = host
        self._all = _Places()
        self._near = _Places() if has_lower else None

    def apply(self, changes: KvEvents) -> None:
        """Changes of a lower tier: nothing is removed that was not stored there."""
        self._all.apply(changes)

    def drain(self, pool_changes: KvEvents) -> KvEvents:
        """The pool's changes, with what they and those of other places add up to."""
        for changes in (pool_changes, self._host.drain_events()):
            self._all.apply(changes)
            if self._near is not None:
                self._near.apply(changes)
        kept, lost = self._all.drain()
        near, far = self._near.drain() if self._near is not None else ((), ())
        return replace(pool_changes, kept=kept, lost=lost, near=near, far=far)

    def snapshot(self, pool_snapshot: KvEvents) -> KvEvents:
        """With everything that was told so far; what was not is still to come."""
        near = self._near.told() if self._near is not None else ()
        return replace(pool_snapshot, kept=self._all.told(), near=near)


class _Places:
    """How many places have each block."""

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}
        # What changed since the last drain, with its number before.
        self._before: dict[bytes, int] = {}

    def apply(self, changes: KvEvents) -> None:
        for block_hash in changes.removed:
            self._add(block_hash, -1)
        for block_hash in changes.stored:
            self._add(block_hash, 1)

    def drain(self) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """What came to a first place, and what left its last one."""
        came, left = [], []
        for block_hash, before in self._before.items():
            now = self._counts.get(block_hash, 0)
            if now and not before:
                came.append(block_hash)
            elif before and not now:
                left.append(block_hash)
        self._before.clear()
        return tuple(came), tuple(left)

    def told(self) -> tuple[bytes, ...]:
        """What was somewhere at the last drain."""
        still = [h for h in self._counts if self._before.get(h, 1)]
        gone = [h for h, before in self._before.items() if before and h not in self._counts]
        return (*still, *gone)

    def _add(self, block_hash: bytes, change: int) -> None:
        count = self._counts.get(block_hash, 0)
        self._before.setdefault(block_hash, count)
        if count + change:
            self._counts[block_hash] = count + change
        else:
            del self._counts[block_hash]
