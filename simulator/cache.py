"""The KV memory of one simulated worker: requests' own tokens, and a prefix cache over the rest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from baton.protos.types import KvEvents


class KvMemory:
    """`capacity_tokens`, of which blocks of `block_tokens` can be found by hash.

    The twin of the engine's block pool, with the trace's coarse blocks: a block is referred to by
    requests, or cached (least recently used first out), or not here. Tokens that fill no findable
    block are counted, not named.
    """

    def __init__(self, capacity_tokens: int, block_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.block_tokens = block_tokens
        self.own_tokens = 0
        self._references: dict[bytes, int] = {}
        self._cached: OrderedDict[bytes, None] = OrderedDict()
        self._stored: dict[bytes, None] = {}
        self._removed: dict[bytes, None] = {}

    @property
    def available_tokens(self) -> int:
        """Tokens that take() and grow() can give: free ones and cached ones nobody refers to."""
        return self.capacity_tokens - self.own_tokens - self.block_tokens * len(self._references)

    def match(self, hashes: Sequence[bytes]) -> int:
        """Leading blocks of the chain that are here."""
        count = 0
        for block_hash in hashes:
            if block_hash not in self._references and block_hash not in self._cached:
                break
            count += 1
        return count

    def take(self, shared: Sequence[bytes], num_own_tokens: int, headroom: int) -> bool:
        """Refers to the `shared` blocks, which are here, and takes more tokens; or does nothing."""
        num_cached = sum(block_hash in self._cached for block_hash in shared)
        if num_own_tokens + headroom + num_cached * self.block_tokens > self.available_tokens:
            return False
        for block_hash in shared:
            if block_hash in self._cached:
                del self._cached[block_hash]
                self._references[block_hash] = 1
            else:
                self._references[block_hash] += 1
        self.grow(num_own_tokens)
        return True

    def grow(self, num_tokens: int) -> None:
        """Takes tokens that are available, evicting as needed."""
        self.own_tokens += num_tokens
        while self._cached and self.available_tokens < self.block_tokens * len(self._cached):
            evicted, _ = self._cached.popitem(last=False)
            if evicted in self._stored:
                del self._stored[evicted]
            else:
                self._removed[evicted] = None

    def publish(self, block_hash: bytes) -> bool:
        """A full block of a request's own tokens is computed: it can be found from now on.

        False when another block has that content: the request keeps its own copy.
        """
        if block_hash in self._references or block_hash in self._cached:
            return False
        self.own_tokens -= self.block_tokens
        self._references[block_hash] = 1
        if block_hash in self._removed:
            del self._removed[block_hash]
        else:
            self._stored[block_hash] = None
        return True

    def bring(self, hashes: Sequence[bytes]) -> None:
        """Blocks of a prefix that another worker has written here are cached, if there is room."""
        known = self.match(hashes)
        shared, own_tokens = list(hashes[:known]), (len(hashes) - known) * self.block_tokens
        if not self.take(shared, own_tokens, 0):
            return
        for block_hash in hashes[known:]:
            if self.publish(block_hash):
                shared.append(block_hash)
                own_tokens -= self.block_tokens
        self.release(shared, own_tokens)

    def release(self, shared: Sequence[bytes], num_own_tokens: int) -> None:
        """Ends references, in token order so that a tail is evicted first, and own tokens."""
        self.own_tokens -= num_own_tokens
        for block_hash in reversed(shared):
            count = self._references[block_hash] - 1
            if count:
                self._references[block_hash] = count
            else:
                del self._references[block_hash]
                self._cached[block_hash] = None

    def drain_events(self) -> KvEvents | None:
        """Net changes since the last call; None where there are none."""
        if not self._stored and not self._removed:
            return None
        events = KvEvents(stored=tuple(self._stored), removed=tuple(self._removed))
        self._stored.clear()
        self._removed.clear()
        return events

    def check_integrity(self) -> None:
        """Raises AssertionError unless everything adds up."""
        assert self.own_tokens >= 0, "own tokens fell below 0"
        assert all(count > 0 for count in self._references.values()), "a reference count of 0"
        assert not self._references.keys() & self._cached.keys(), "a block is in two places"
        cached = self.block_tokens * len(self._cached)
        assert cached <= self.available_tokens, "more is kept than there is room for"
