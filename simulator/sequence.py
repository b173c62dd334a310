"""One request in one simulated engine, and its share of the engine's KV memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.simulator.cache import KvMemory


@dataclass(slots=True, eq=False)
class Sequence:
    """One request in one engine. `num_tokens` are known, of which `num_computed` have their KV.

    `remaining` tokens are still to be sampled. `hold`: computed for another worker, and kept until
    release().
    """

    order: tuple[int, int]
    num_tokens: int
    remaining: int
    hashes: tuple[bytes, ...]
    hold: bool = False
    num_computed: int = 0
    num_cached: int = 0
    num_published: int = 0
    shared: list[bytes] = field(default_factory=list)
    own_tokens: int = 0
    finish_step: int = -1
    start_step: int = 0
    last_token_s: float = -1.0

    @property
    def computed(self) -> bool:
        """All its known tokens have their KV."""
        return self.num_computed >= self.num_tokens

    def findable(self, memory: KvMemory) -> tuple[bytes, ...]:
        """Blocks that a cache may have: the last token is always computed, as its logits choose
        the next one.
        """
        return self.hashes[: (self.num_tokens - 1) // memory.block_tokens]

    def take(self, memory: KvMemory, headroom: int) -> bool:
        """KV for all its known tokens, shared as far as the cache has them; or nothing."""
        block_tokens = memory.block_tokens
        findable = self.findable(memory)
        shared = list(findable[: memory.match(findable)])
        num_cached = len(shared) * block_tokens
        num_own = self.num_tokens - num_cached
        if not memory.take(shared, num_own, headroom):
            return False
        self.shared, self.own_tokens = shared, num_own
        self.num_computed = self.num_cached = num_cached
        self.num_published = len(shared)
        return True

    def num_uncached(self, memory: KvMemory) -> int:
        """Known tokens that would have to be computed if it began now."""
        return self.num_tokens - memory.match(self.findable(memory)) * memory.block_tokens

    def publish(self, memory: KvMemory) -> None:
        """Lets others find its blocks whose tokens are now all computed."""
        full = min(self.num_computed // memory.block_tokens, len(self.hashes))
        for index in range(self.num_published, full):
            if memory.publish(self.hashes[index]):
                self.shared.append(self.hashes[index])
                self.own_tokens -= memory.block_tokens
        self.num_published = max(full, self.num_published)

    def free(self, memory: KvMemory) -> None:
        """Gives everything back. What was computed must be computed, or found, again."""
        memory.release(self.shared, self.own_tokens)
        self.shared, self.own_tokens = [], 0
        self.num_computed = self.num_published = 0
