"""Which worker holds which prefix: block hash to the set of workers that report it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from baton.protos.hashing import short_hashes
from baton.protos.types import KvDigest, KvEvents
from baton.router.decision import Chain, Kept
from baton.router.promises import Held, Promises
from baton.router.view import Columns, Floats

# A table of many small dicts: none is ever so large that growing or cleaning it is felt.
_NUM_SHARDS: Final = 256
_SHARD_MASK: Final = _NUM_SHARDS - 1
# Entries that are looked at for workers that are gone, each time anything changes.
_SWEEP_ENTRIES: Final = 20_000
# Sets of workers that are remembered so that equal ones are one object.
_MAX_SETS: Final = 1 << 16


class Prefixes(Protocol):
    """Who holds how much of a prompt; the index, or what a log says that it said."""

    def held(self, chains: Sequence[Chain], pools: Sequence[Columns]) -> list[Held]:
        """Those who hold any tokens, longest prefix first. Sets the pools' `bits`.

        chains: the prompt's blocks in every size that a worker has.
        """

    def kept(self, chains: Sequence[Chain]) -> Mapping[str, Kept]:
        """What workers with tiers below their pools have in any place."""


def aligned(held: Sequence[Held], pool: Columns) -> Floats:
    """Leading tokens that each worker of a pool holds: float64 [num_workers]."""
    found = np.zeros(len(pool))
    for workers, num_tokens in held:
        for row, bit in enumerate(pool.bits):
            if bit & workers:
                found[row] = num_tokens
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixIndexStatistics:
    """`num_entries` counts (worker, block) pairs, `num_dropped` those refused over the limit."""

    num_workers: int
    num_blocks: int
    num_entries: int
    num_dropped: int


@dataclass(slots=True)
class _Holder:
    """A worker's place: the bit that stands for it, and a digest of what it holds."""

    bit: int
    num_blocks: int = 0
    digest: int = 0
    num_dropped: int = 0


class PrefixIndex:
    """Hash to a bit set of workers.

    Hashes are cut to 8 bytes: here a collision costs a wrong estimate, never wrong tokens (the
    engine compares all 16). A block costs about 100 bytes whoever holds it; at most
    `max_blocks_per_worker` of each worker are indexed, what is over is only counted.

    A worker's blocks are taken to be prefixes: caches evict the end of a chain before its
    beginning, so who holds a block holds those before it, and a prompt's hits are found by
    bisection. Where that fails the estimate is off by what is missing in between.
    """

    def __init__(self, *, max_blocks_per_worker: int = 1 << 20, promise_stride: int = 32) -> None:
        self._max_blocks = max_blocks_per_worker
        self._shards: list[dict[int, int]] = [{} for _ in range(_NUM_SHARDS)]
        self._holders: dict[str, _Holder] = {}
        self._sets: dict[int, int] = {}
        # Bits of workers that are gone, and shards that may still have them.
        self._dead = 0
        self._unswept: list[int] = []
        self._promises = Promises(promise_stride)
        self._num_dropped = 0
        self._version = 0
        # What workers have anywhere, their slower tiers included; None where none has such tiers.
        self._kept: PrefixIndex | None = None
        # Of workers with tiers below host memory, what they have in that or in their pools.
        self._near: PrefixIndex | None = None

    def __bool__(self) -> bool:
        return bool(self._kept) or any(holder.num_blocks for holder in self._holders.values())

    def apply(self, worker_id: str, events: KvEvents) -> None:
        """Applies one batch of a worker's changes, in the order that KvEvents defines."""
        if events.cleared:
            self.remove_worker(worker_id)
        if events.removed:
            self._remove(worker_id, short_hashes(events.removed))
        if events.stored:
            self._store(worker_id, short_hashes(events.stored))
        if events.kept or events.lost:
            self._kept = self._kept or PrefixIndex(max_blocks_per_worker=self._max_blocks)
            self._kept.apply(worker_id, KvEvents(stored=events.kept, removed=events.lost))
        if events.near or events.far:
            self._near = self._near or PrefixIndex(max_blocks_per_worker=self._max_blocks)
            self._near.apply(worker_id, KvEvents(stored=events.near, removed=events.far))
        self._sweep()

    def remove_worker(self, worker_id: str) -> None:
        """Forgets a worker; unknown ones are ignored."""
        for below in (self._kept, self._near):
            if below is not None:
                below.remove_worker(worker_id)
        holder = self._holders.pop(worker_id, None)
        if holder is None:
            return
        self._version += 1
        self._promises.forget(holder.bit)
        if holder.num_blocks:
            self._dead |= holder.bit
            self._unswept = list(range(_NUM_SHARDS))
            self._sweep()

    def digest(self, worker_id: str) -> KvDigest | None:
        """Of what is believed of a worker; None where nothing is, or not all of it is kept."""
        holder = self._holders.get(worker_id)
        if holder is None or holder.num_dropped:
            return None
        return KvDigest(holder.num_blocks, holder.digest)

    @property
    def num_dropped(self) -> int:
        """Blocks that were refused over the limit."""
        return self._num_dropped

    def promise(self, key: object, worker_ids: Iterable[str], hashes: Sequence[bytes]) -> None:
        """A prompt was sent to these workers: to within `promise_stride` blocks it counts as held
        there until `settle`; more may be promised under the same key."""
        bits = 0
        for worker_id in worker_ids:
            bits |= (self._holders.get(worker_id) or self._add_worker(worker_id)).bit
        self._promises.add(key, bits, hashes)

    def settle(self, key: object) -> None:
        """What was promised is there and reported, or will never be; unknown keys are ignored."""
        self._promises.remove(key)

    def hits(self, hashes: Sequence[bytes]) -> dict[str, int]:
        """Leading blocks of the chain that each worker holds; workers with none are absent."""
        ended = self._promises.with_promised(self._ended(hashes), hashes)
        return {
            worker_id: num_blocks
            for workers, num_blocks in ended
            for worker_id, holder in self._holders.items()
            if workers & holder.bit
        }

    def tokens(self, chains: Sequence[Chain]) -> dict[str, int]:
        """Leading tokens that each worker holds; workers with none are absent."""
        return {
            worker_id: num_blocks * size
            for size, hashes in chains
            for worker_id, num_blocks in self.hits(hashes).items()
        }

    def kept(self, chains: Sequence[Chain]) -> dict[str, Kept]:
        """See `Prefixes`."""
        if self._kept is None:
            return {}
        near = {} if self._near is None else self._near.tokens(chains)
        return {name: Kept(n, near.get(name, 0)) for name, n in self._kept.tokens(chains).items()}

    def held(self, chains: Sequence[Chain], pools: Sequence[Columns]) -> list[Held]:
        """As `tokens`, by length: see `Prefixes`."""
        for pool in pools:
            self._place(pool)
        held = [
            Held(workers, num_blocks * size)
            for size, hashes in chains
            for workers, num_blocks in self._promises.with_promised(self._ended(hashes), hashes)
        ]
        if len(chains) > 1:
            held.sort(key=lambda each: -each.length)
        return held

    def statistics(self) -> PrefixIndexStatistics:
        return PrefixIndexStatistics(
            num_workers=len(self._holders),
            num_blocks=sum(map(len, self._shards)),
            num_entries=sum(holder.num_blocks for holder in self._holders.values()),
            num_dropped=self._num_dropped,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError unless the table and what is kept of each worker agree."""
        assert not self._dead & sum(holder.bit for holder in self._holders.values())
        for worker_id, holder in self._holders.items():
            keys = [key for shard in self._shards for key, o in shard.items() if o & holder.bit]
            digest = 0
            for key in keys:
                digest ^= key
            assert (len(keys), digest) == (holder.num_blocks, holder.digest), (
                f"the index and its digest of {worker_id} disagree"
            )
        for number, shard in enumerate(self._shards):
            assert all(key & _SHARD_MASK == number for key in shard), "a key is in a wrong shard"
            assert all(shard.values()), "a block is kept that nobody holds"

    def _ended(self, hashes: Sequence[bytes]) -> list[Held]:
        """Which workers' prefixes end where, longest first, by bisection between the first and the
        last block."""
        if not hashes:
            return []
        shards, from_bytes = self._shards, int.from_bytes
        key = from_bytes(hashes[0][:8], "little")
        first = shards[key & _SHARD_MASK].get(key, 0) & ~self._dead
        if not first:
            return []
        ended: list[Held] = []
        # Workers that hold block `low`, those of them that hold block `high`: [low, high).
        spans = [(0, first, len(hashes), 0)]
        while spans:
            low, here, high, there = spans.pop()
            if here == there:
                continue
            if high - low == 1:
                ended.append(Held(here & ~there, high))
                continue
            middle = (low + high) // 2
            key = from_bytes(hashes[middle][:8], "little")
            held = shards[key & _SHARD_MASK].get(key, 0) & here
            spans.append((low, here, middle, held))
            # A worker that lacks the middle has nothing beyond it, whatever was seen there.
            spans.append((middle, held, high, there & held))
        return ended

    def _place(self, pool: Columns) -> None:
        """Where this index's bits are in the pool, remembered until workers change."""
        version = (id(self), self._version)
        if pool.bits_version == version:
            return
        pool.bits_version = version
        holders = self._holders
        pool.set_bits([holders[name].bit if name in holders else 0 for name in pool.ids])

    def _store(self, worker_id: str, keys: Sequence[int]) -> None:
        holder = self._holders.get(worker_id) or self._add_worker(worker_id)
        shards, bit, sets = self._shards, holder.bit, self._sets
        if len(sets) > _MAX_SETS:
            sets.clear()
        # Most blocks have one owner: that set is one object for all of them.
        alone = sets.setdefault(bit, bit)
        for key in keys:
            shard = shards[key & _SHARD_MASK]
            owners = shard.get(key, 0)
            if owners & bit:
                continue
            if holder.num_blocks >= self._max_blocks:
                holder.num_dropped += 1
                self._num_dropped += 1
                continue
            holder.num_blocks += 1
            holder.digest ^= key
            both = owners | bit
            shard[key] = sets.setdefault(both, both) if owners else alone

    def _remove(self, worker_id: str, keys: Sequence[int]) -> None:
        holder = self._holders.get(worker_id)
        if holder is None:
            return
        shards, bit, sets = self._shards, holder.bit, self._sets
        for key in keys:
            shard = shards[key & _SHARD_MASK]
            owners = shard.get(key, 0)
            if not owners & bit:
                continue
            holder.num_blocks -= 1
            holder.digest ^= key
            left = owners ^ bit
            if left:
                shard[key] = sets.setdefault(left, left)
            else:
                del shard[key]

    def _sweep(self) -> None:
        """Takes workers that are gone out of a part of the table."""
        if not self._dead:
            return
        keep, num_seen = ~self._dead, 0
        while self._unswept and num_seen < _SWEEP_ENTRIES:
            shard = self._shards[self._unswept.pop()]
            num_seen += len(shard)
            for key, owners in [item for item in shard.items() if item[1] & self._dead]:
                if owners & keep:
                    shard[key] = owners & keep
                else:
                    del shard[key]
        if not self._unswept:
            self._dead = 0

    def _add_worker(self, worker_id: str) -> _Holder:
        taken = self._dead
        for holder in self._holders.values():
            taken |= holder.bit
        self._version += 1
        new = self._holders[worker_id] = _Holder(~taken & (taken + 1))
        return new
