"""Which worker holds which prefix: block hash to the set of workers that report it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

from baton.protos.hashing import HASH_BYTES
from baton.protos.types import KvEvents


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixIndexStatistics:
    """`num_entries` counts (worker, block) pairs, `num_dropped` those refused over the limit."""

    num_workers: int
    num_blocks: int
    num_entries: int
    num_dropped: int


class PrefixIndex:
    """Hash to a bit set of workers, and each worker's own hashes so that it can leave cheaply.

    Hashes are cut to 8 bytes: here a collision costs a wrong estimate, never wrong tokens (the
    engine compares all 16). About 150 bytes a (worker, block) pair, at most
    `max_blocks_per_worker` pairs a worker; what is over is not indexed, only counted.
    """

    def __init__(self, *, max_blocks_per_worker: int = 1 << 20) -> None:
        self._max_blocks = max_blocks_per_worker
        self._owners: dict[int, int] = {}
        self._blocks: dict[str, set[int]] = {}
        self._bits: dict[str, int] = {}
        self._num_dropped = 0

    def __bool__(self) -> bool:
        return bool(self._owners)

    def apply(self, worker_id: str, events: KvEvents) -> None:
        """Applies one batch of a worker's changes, in the order that KvEvents defines."""
        if events.cleared:
            self._forget_blocks(worker_id)
        if events.removed:
            self._remove(worker_id, _short(events.removed))
        if events.stored:
            self._store(worker_id, _short(events.stored))

    def remove_worker(self, worker_id: str) -> None:
        """Forgets a worker; unknown ones are ignored."""
        self._forget_blocks(worker_id)
        self._blocks.pop(worker_id, None)
        self._bits.pop(worker_id, None)

    def hits(self, hashes: Sequence[bytes]) -> dict[str, int]:
        """Leading blocks of the chain that each worker holds; workers with none are absent."""
        if not hashes or not self._owners:
            return {}
        owners = map(self._owners.get, _short(hashes), repeat(0))
        alive = next(owners)
        ended: list[tuple[int, int]] = []
        for length, mask in enumerate(owners, start=1):
            if mask & alive != alive:
                ended.append((alive & ~mask, length))
                alive &= mask
                if not alive:
                    break
        else:
            ended.append((alive, len(hashes)))
        return {
            worker_id: blocks
            for mask, blocks in ended
            for worker_id, bit in self._bits.items()
            if mask & bit
        }

    def statistics(self) -> PrefixIndexStatistics:
        return PrefixIndexStatistics(
            num_workers=len(self._bits),
            num_blocks=len(self._owners),
            num_entries=sum(map(len, self._blocks.values())),
            num_dropped=self._num_dropped,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError unless both directions of the index agree."""
        owners: dict[int, int] = {}
        for worker_id, blocks in self._blocks.items():
            for short in blocks:
                owners[short] = owners.get(short, 0) | self._bits[worker_id]
        assert owners == self._owners, "block owners and worker blocks disagree"
        assert len(set(self._bits.values())) == len(self._bits), "two workers share a bit"

    def _store(self, worker_id: str, shorts: Sequence[int]) -> None:
        bit = self._bits.get(worker_id) or self._add_worker(worker_id)
        blocks = self._blocks[worker_id]
        room = self._max_blocks - len(blocks)
        if len(shorts) > room:
            shorts = [short for short in shorts if short not in blocks]
            self._num_dropped += max(0, len(shorts) - room)
            shorts = shorts[:room]
        blocks.update(shorts)
        owners = self._owners
        for short in shorts:
            owners[short] = owners.get(short, 0) | bit

    def _remove(self, worker_id: str, shorts: Iterable[int]) -> None:
        blocks = self._blocks.get(worker_id, set())
        known = blocks.intersection(shorts)
        blocks.difference_update(known)
        self._disown(worker_id, known)

    def _forget_blocks(self, worker_id: str) -> None:
        blocks = self._blocks.get(worker_id)
        if blocks:
            self._disown(worker_id, blocks)
            blocks.clear()

    def _disown(self, worker_id: str, shorts: Iterable[int]) -> None:
        keep = ~self._bits.get(worker_id, 0)
        owners = self._owners
        for short in shorts:
            left = owners[short] & keep
            if left:
                owners[short] = left
            else:
                del owners[short]

    def _add_worker(self, worker_id: str) -> int:
        taken = set(self._bits.values())
        bit = 1
        while bit in taken:
            bit <<= 1
        self._bits[worker_id] = bit
        self._blocks[worker_id] = set()
        return bit


def _short(hashes: Sequence[bytes]) -> tuple[int, ...]:
    # One unpack for all of them: a 500-block prompt must not pay 500 calls.
    raw = b"".join(hashes)
    if len(raw) != HASH_BYTES * len(hashes):
        raise ValueError(f"block hashes must be {HASH_BYTES} bytes each")
    return struct.unpack(f"<{2 * len(hashes)}Q", raw)[::2]
