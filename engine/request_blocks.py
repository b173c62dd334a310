"""Gives KV blocks to requests: a prefix from the cache, the rest new, published when computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from baton.engine.block_pool import BlockPool
from baton.engine.request import Request


class RequestBlocks:
    """The one writer of `Request.block_ids` and `num_computed_tokens`' cached part."""

    def __init__(self, pool: BlockPool, block_size: int, *, prefix_cache: bool) -> None:
        self._pool = pool
        self._block_size = block_size
        self._prefix_cache = prefix_cache

    def take(self, request: Request, headroom: int) -> bool:
        """All blocks for its known tokens, shared as far as the prefix cache has them; or none.

        headroom: blocks that must stay available for the decodes. Returns whether there was room.
        """
        total = -(-request.num_tokens // self._block_size)
        shared = self._match(request)
        available = self._pool.num_available - self._pool.num_unreferenced(shared)
        if total - len(shared) + headroom > available:
            return False
        self._pool.share(shared)
        request.block_ids = shared + self._pool.allocate(total - len(shared))
        request.num_computed_tokens = len(shared) * self._block_size
        request.num_published_blocks = len(shared)
        if not request.num_preemptions:
            request.num_cached_tokens = request.num_computed_tokens
        return True

    def loaded(self, request: Request, num_tokens: int) -> None:
        """The blocks of so many tokens, after those that it shares, were filled."""
        request.num_computed_tokens += num_tokens
        if not request.num_preemptions:
            request.num_cached_tokens = request.num_computed_tokens
        self.publish(request, request.num_computed_tokens)

    def num_uncached(self, request: Request) -> int:
        """Known tokens that it would have to compute if it were taken now."""
        return request.num_tokens - self._block_size * self._pool.num_held(self._findable(request))

    def without_room(self, requests: Iterable[Request]) -> list[Request]:
        """Those of whose known tokens the last has no block yet."""
        size = self._block_size
        return [
            r
            for r in requests
            if r.num_tokens > len(r.block_ids) * size and not r.ends_with_pending
        ]

    def num_missing(self, request: Request) -> int:
        """How many blocks its known tokens lack."""
        return -(-request.num_tokens // self._block_size) - len(request.block_ids)

    def grow(self, request: Request) -> bool:
        """One more block, if there is one."""
        if not self._pool.num_available:
            return False
        request.block_ids += self._pool.allocate(1)
        return True

    def publish(self, request: Request, num_tokens: int) -> None:
        """Lets others find its full blocks among the first `num_tokens` tokens, now computed."""
        full = num_tokens // self._block_size
        if full > request.num_published_blocks and self._prefix_cache:
            request.extend_hashes(self._block_size, full)
            for index in range(request.num_published_blocks, full):
                self._pool.publish(request.block_ids[index], request.block_hashes[index])
            request.num_published_blocks = full

    def free(self, request: Request) -> None:
        """Drops its references. What was computed must be computed, or found, again."""
        # A new list: the old one may have been handed out with a PrefillProgress.
        block_ids, request.block_ids = request.block_ids, []
        request.num_computed_tokens = 0
        request.num_published_blocks = 0
        self._pool.release(block_ids)

    def _match(self, request: Request) -> list[int]:
        """Cached blocks of its longest known prefix."""
        return self._pool.match(self._findable(request))

    def _findable(self, request: Request) -> Sequence[bytes]:
        """Hashes of the blocks that the cache may have for it: the last token is computed."""
        if not self._prefix_cache or request.needs_prompt_logprobs:
            return ()
        num_blocks = (request.num_tokens - 1) // self._block_size
        request.extend_hashes(self._block_size, num_blocks)
        return request.block_hashes[:num_blocks]
