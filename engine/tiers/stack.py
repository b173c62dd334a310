"""The tiers below an engine's pool, as its scheduler and its reports see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baton.engine.block_pool import BlockPool
from baton.engine.request import Request
from baton.engine.tiers.copier import BlockCopier
from baton.engine.tiers.fetch import Fetcher
from baton.engine.tiers.lane import Lane, News
from baton.engine.tiers.load import Loader
from baton.engine.tiers.reach import Reach
from baton.engine.tiers.recall import Recaller
from baton.engine.tiers.seam import Tiers
from baton.engine.tiers.statistics import TierStatistics, tier_loads
from baton.engine.tiers.tier_lane import TierLane
from baton.engine.tiers.write_back import WriteBack
from baton.kvtransfer.tiers.tier import Tier
from baton.protos.clock import Clock
from baton.protos.types import GenerateRequest, KvEvents, TierLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class TierParts:
    """What a stack stands on. `host`: which block is in which slot of host memory, as in a pool.
    `reading` and `writing` are lanes for copies from and to the pool."""

    host: BlockPool
    copier: BlockCopier
    reading: Lane
    writing: Lane
    lower: Sequence[tuple[Tier, Lane]]
    news: News


class TierStack(Tiers):
    """All of it belongs to the engine's thread. See `Tiers` for the methods.

    compute_s: seconds in which the engine computes so many blocks; None: not measured yet.
    """

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        parts: TierParts,
        clock: Clock,
        compute_s: Callable[[int], float | None],
    ) -> None:
        self._parts = parts
        self._pool = pool
        self._block_size = block_size
        self._host = parts.host
        self._clock = clock
        self._compute_s = compute_s
        self._reach = Reach(parts.host, has_lower=bool(parts.lower))
        self._lower = [
            TierLane(tier, lane, clock, self._reach.apply, parts.host.num_blocks // 4)
            for tier, lane in parts.lower
        ]
        self._fetcher = Fetcher(parts.host, self._lower, clock, compute_s)
        self._loader = Loader(pool, parts.host, parts.copier, parts.writing, clock)
        self._recaller = Recaller(
            pool,
            parts.host,
            Fetcher(parts.host, self._lower, clock, compute_s),
            Loader(pool, parts.host, parts.copier, parts.writing, clock),
            clock,
            self._hashes,
            self._is_quicker,
        )
        self._write_back = WriteBack(pool, parts.host, parts.copier, parts.reading, self._lower)
        self._num_wanted = self._num_pool = self._num_host = self._num_declined = 0

    def wake_with(self, call: Callable[[], None]) -> None:
        self._parts.news.wake = call

    def fetch(self, request: Request) -> bool:
        hashes = self._hashes(request)
        hashes = hashes[len(self._pool.match(hashes)) :]
        here = self._host.match(hashes)
        # Used again: they are the last to go.
        self._host.share(here)
        self._host.release(here)
        return self._fetcher.start(request, hashes[len(here) :])

    def take_fetched(self) -> list[Request]:
        return self._fetcher.take_done()

    def load(self, request: Request) -> bool:
        hashes, size = self._hashes(request), self._block_size
        first = request.num_computed_tokens // size
        self._num_wanted += len(hashes)
        self._num_pool += first
        slots = self._host.match(hashes[first:])
        if not slots:
            return False
        if not self._is_quicker(len(slots)):
            return False
        if not self._loader.start(request, slots, first):
            return False
        self._num_host += len(slots)
        return True

    @property
    def first_loaded(self) -> Request | None:
        return self._loader.first_done

    def take_loaded(self, request: Request) -> int:
        return self._loader.take(request) * self._block_size

    def drop(self, request: Request) -> None:
        self._fetcher.drop(request)
        self._loader.drop(request)

    def recall(
        self,
        prefix: GenerateRequest,
        headroom: Callable[[], int],
        done: Callable[[], None],
        *,
        near: bool,
    ) -> None:
        self._recaller.start(prefix, headroom, done, near=near)

    def take_in(self) -> bool:
        has_news = bool(self._parts.news) or self._recaller.has_done
        self._parts.news.take_in()
        self._recaller.advance()
        return has_news

    def advance(self) -> None:
        self._write_back.advance()

    @property
    def has_done(self) -> bool:
        has_news = bool(self._parts.news) or self._loader.first_done is not None
        return has_news or self._fetcher.has_done or self._recaller.has_done

    @property
    def next_deadline_s(self) -> float | None:
        deadlines_s = (self._fetcher.next_deadline_s, self._recaller.next_deadline_s)
        return min((at_s for at_s in deadlines_s if at_s is not None), default=None)

    @property
    def num_fetching(self) -> int:
        return len(self._fetcher.requests)

    @property
    def num_loading(self) -> int:
        return len(self._loader.requests)

    @property
    def waiting(self) -> list[Request]:
        return self._fetcher.requests + self._loader.requests

    @property
    def orphans(self) -> list[list[int]]:
        return self._loader.orphans + self._recaller.blocks

    def drain(self, pool_changes: KvEvents) -> KvEvents:
        return self._reach.drain(pool_changes)

    def snapshot(self, pool_snapshot: KvEvents) -> KvEvents:
        return self._reach.snapshot(pool_snapshot)

    def report(self) -> tuple[TierLoad, ...]:
        return tier_loads(self._pool.statistics(), self.statistics(), self._block_size)

    def statistics(self) -> TierStatistics:
        return TierStatistics(
            num_wanted=self._num_wanted + self._recaller.num_loaded,
            num_pool=self._num_pool,
            num_host=self._num_host + self._recaller.num_loaded,
            num_declined=self._num_declined,
            num_stored=self._write_back.num_stored,
            num_dropped=self._write_back.num_dropped,
            load_s_per_block=self._loader.rate.seconds_per_unit,
            host=self._host.statistics(),
            lower=tuple(tier.statistics() for tier in self._lower),
        )

    def check_integrity(self) -> None:
        is_busy = self._write_back.is_busy or self._loader.is_busy or self._recaller.is_busy
        if not is_busy and not any(tier.is_busy for tier in self._lower):
            self._host.check_integrity([])

    def close(self) -> None:
        for lane in (self._parts.reading, self._parts.writing):
            lane.close()
        for tier in self._lower:
            tier.close()

    def _is_quicker(self, num_blocks: int) -> bool:
        """Whether so many are loaded from host memory rather than computed."""
        compute_s = self._compute_s(num_blocks)
        if compute_s is None or self._loader.rate.estimate_s(num_blocks) < compute_s:
            return True
        self._num_declined += num_blocks
        self._loader.rate.forget_a_little()
        return False

    def _hashes(self, request: Request) -> list[bytes]:
        """Of the blocks that may be found rather than computed: a token at least is computed."""
        if request.needs_prompt_logprobs:
            return []
        num_blocks = (request.num_tokens - 1) // self._block_size
        request.extend_hashes(self._block_size, num_blocks)
        return request.block_hashes[:num_blocks]
