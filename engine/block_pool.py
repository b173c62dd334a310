"""Which KV block holds what: reference counts, the prefix cache over them, and its events.

A block is in exactly one of three places. *Free*: nothing of worth in it. *Cached*: nobody refers
to it, but its hash is known and a later prompt may take it up; the least recently used of these is
the first to be evicted. *In use*: one or more requests refer to it, whether or not it has a hash.

A hash names a block's tokens and everything before them (`protos.hashing`), so a chain of hashes
found from the first block on is a prefix whose KV is here. Blocks never move and never change their
content while they are referred to; two requests that computed the same prompt side by side keep
their own copies, and only the first one published is found by others.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import operator
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from baton.protos.errors import BatonError
from baton.protos.hashing import short_hash
from baton.protos.types import KvDigest, KvEvents


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPoolStatistics:
    """Blocks by place (the three add up to `num_blocks`); evictions since start."""

    num_blocks: int
    num_free: int
    num_cached: int
    num_in_use: int
    num_evictions: int


class BlockPool:
    """Ids of the KV pool's blocks. Not thread-safe: the engine's thread owns it."""

    def __init__(self, num_blocks: int, *, prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self._prefix_cache = prefix_cache
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._xored = 0
        # Popped from the end, so that low ids come first.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._evictable: OrderedDict[int, None] = OrderedDict()
        # What changed since the last drain, netted: a hash that came and went is in neither.
        self._stored: dict[bytes, None] = {}
        self._removed: dict[bytes, None] = {}
        self._num_evictions = 0
        # How often each block was evicted: a copy of it is good if that did not change meanwhile.
        self._ages = [0] * num_blocks
        # Counts whatever may change which blocks are evicted next.
        self.num_changes = 0
        # Told of each hash that is evicted.
        self.on_evict: Callable[[bytes], None] | None = None

    def __contains__(self, block_hash: bytes) -> bool:
        """Whether a block can be found under this hash."""
        return block_hash in self._by_hash

    @property
    def num_free(self) -> int:
        """Blocks with nothing of worth in them."""
        return len(self._free)

    def oldest_cached(self, count: int) -> Iterator[tuple[int, bytes]]:
        """Ids and hashes of the cached blocks that would be evicted next, the first one first."""
        for block_id in itertools.islice(self._evictable, count):
            block_hash = self._hashes[block_id]
            if block_hash is not None:
                yield block_id, block_hash

    def age(self, block_id: int) -> int:
        """Changes when the block loses its content."""
        return self._ages[block_id]

    @property
    def num_available(self) -> int:
        """Blocks that allocate() can give: free ones, and cached ones that nobody refers to."""
        return len(self._free) + len(self._evictable)

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Blocks of the longest known prefix of the chain. Takes no references: see share()."""
        found: list[int] = []
        for block_hash in hashes:
            block_id = self._by_hash.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def num_held(self, hashes: Sequence[bytes]) -> int:
        """About len(match()), by bisection: the end of a chain is evicted before its beginning."""
        return bisect.bisect_left(hashes, True, key=lambda each: each not in self._by_hash)

    def num_unreferenced(self, block_ids: Iterable[int]) -> int:
        """How many of these nobody refers to: share() would take them from `num_available`."""
        return sum(not self._ref_counts[block_id] for block_id in block_ids)

    def share(self, block_ids: Iterable[int]) -> None:
        """Adds a reference to each of these matched blocks."""
        for block_id in block_ids:
            if not self._ref_counts[block_id]:
                del self._evictable[block_id]
            self._ref_counts[block_id] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each, evicting cached ones as needed.

        Raises BatonError if there are fewer than `count` available: callers look first.
        """
        if count > self.num_available:
            raise BatonError(f"{count} KV blocks wanted, but only {self.num_available} available")
        self.num_changes += count
        taken: list[int] = []
        for _ in range(count):
            block_id = self._free.pop() if self._free else self._evict()
            self._ref_counts[block_id] = 1
            taken.append(block_id)
        return taken

    def release(self, block_ids: Sequence[int]) -> None:
        """Drops one reference from each. Given in token order, so that a tail is evicted first.

        Raises BatonError if a block has no reference: it would be handed out twice.
        """
        for block_id in reversed(block_ids):
            count = self._ref_counts[block_id]
            if count <= 0:
                raise BatonError(f"KV block {block_id} released, but nobody refers to it")
            self._ref_counts[block_id] = count - 1
            if count == 1:
                if self._hashes[block_id] is None:
                    self._free.append(block_id)
                else:
                    self._evictable[block_id] = None
                    self.num_changes += 1

    def publish(self, block_id: int, block_hash: bytes) -> None:
        """The block's tokens are all computed: lets later prompts find it under `block_hash`.

        Does nothing when another block already has that content, or without a prefix cache.
        """
        if not self._prefix_cache or block_hash in self._by_hash:
            return
        if self._hashes[block_id] is not None or not self._ref_counts[block_id]:
            raise BatonError(f"KV block {block_id} published, but it is not a new block in use")
        self._hashes[block_id] = block_hash
        self._by_hash[block_hash] = block_id
        self._xored ^= short_hash(block_hash)
        if block_hash in self._removed:
            del self._removed[block_hash]
        else:
            self._stored[block_hash] = None

    def drain_events(self) -> KvEvents:
        """Net changes since the last call, in the order of their happening."""
        events = KvEvents(stored=tuple(self._stored), removed=tuple(self._removed))
        self._stored.clear()
        self._removed.clear()
        return events

    def snapshot(self) -> KvEvents:
        """Everything findable now. Changes not drained yet stay pending: they may repeat it."""
        return KvEvents(cleared=True, stored=tuple(self._by_hash))

    def digest(self) -> KvDigest:
        """Of everything findable now."""
        return KvDigest(len(self._by_hash), self._xored)

    def statistics(self) -> BlockPoolStatistics:
        return BlockPoolStatistics(
            num_blocks=self.num_blocks,
            num_free=len(self._free),
            num_cached=len(self._evictable),
            num_in_use=self.num_blocks - self.num_available,
            num_evictions=self._num_evictions,
        )

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """Proves that no block is lost or counted twice. `owners`: each holder's block ids.

        Raises BatonError that says which block, and how it is wrong.
        """
        held = Counter(block_id for block_ids in owners for block_id in block_ids)
        free = Counter(self._free)
        for block_id, count in enumerate(self._ref_counts):
            places = free[block_id] + (block_id in self._evictable) + (count > 0)
            if places != 1:
                raise BatonError(f"KV block {block_id} is in {places} places, but must be in one")
            if count != held[block_id]:
                raise BatonError(
                    f"KV block {block_id} has {count} references, but {held[block_id]} holders"
                )
            block_hash = self._hashes[block_id]
            findable = block_hash is not None and self._by_hash.get(block_hash) == block_id
            if (block_hash is not None) != findable or (free[block_id] and findable):
                raise BatonError(f"KV block {block_id} and the prefix cache disagree")
            if block_id in self._evictable and not findable:
                raise BatonError(f"KV block {block_id} is cached, but cannot be found")
        if self._xored != functools.reduce(operator.xor, map(short_hash, self._by_hash), 0):
            raise BatonError("the prefix cache's digest is not that of its hashes")
        if len(self._by_hash) != sum(h is not None for h in self._hashes):
            raise BatonError("the prefix cache names blocks that do not have its hashes")

    def _evict(self) -> int:
        block_id, _ = self._evictable.popitem(last=False)
        block_hash = self._hashes[block_id]
        if block_hash is None:
            raise BatonError(f"KV block {block_id} is cached without a hash")
        self._hashes[block_id] = None
        del self._by_hash[block_hash]
        self._xored ^= short_hash(block_hash)
        self._num_evictions += 1
        self._ages[block_id] += 1
        if self.on_evict is not None:
            self.on_evict(block_hash)
        if block_hash in self._stored:
            del self._stored[block_hash]
        else:
            self._removed[block_hash] = None
        return block_id
