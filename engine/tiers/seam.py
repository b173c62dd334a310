"""What a scheduler and an engine ask of the tiers below the pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from baton.engine.request import Request
from baton.engine.tiers.statistics import TierStatistics
from baton.protos.types import GenerateRequest, KvEvents, TierLoad


class Tiers:
    """No tiers: nothing is kept, nothing comes back. `stack.TierStack` is the other kind."""

    def wake_with(self, call: Callable[[], None]) -> None:
        """`call` runs on some thread when has_done may have become true by itself."""

    def fetch(self, request: Request) -> bool:
        """It has come: whether it waits for blocks from lower tiers, until take_fetched()."""
        return False

    def take_fetched(self) -> list[Request]:
        """Requests that need not wait any more."""
        return []

    def load(self, request: Request) -> bool:
        """It was given its blocks: whether some are being filled, until it is `first_loaded`."""
        return False

    @property
    def first_loaded(self) -> Request | None:
        """The first in order of those whose blocks are filled."""
        return None

    def take_loaded(self, request: Request) -> int:
        """It goes on: how many tokens of it were loaded after those that it had."""
        return 0

    def drop(self, request: Request) -> None:
        """It ended while it waited here. It may lose its blocks to `orphans`."""

    def recall(
        self,
        prefix: GenerateRequest,
        headroom: Callable[[], int],
        done: Callable[[], None],
        *,
        near: bool,
    ) -> None:
        """`done`, exactly once, when the pool has what is found of the prompt's prefix, where that
        is quicker than to compute it; `headroom()` blocks are left for others. near: only what host
        memory has.
        """
        done()

    def take_in(self) -> bool:
        """Takes in what has happened since the last call; whether anything has."""
        return False

    def advance(self) -> None:
        """After every step: goes on with what nobody waits for."""

    @property
    def has_done(self) -> bool:
        """Whether a step would find anything new here."""
        return False

    @property
    def next_deadline_s(self) -> float | None:
        """When has_done becomes true by itself, on the engine's clock."""
        return None

    @property
    def num_fetching(self) -> int:
        """Requests that wait here and hold no blocks."""
        return 0

    @property
    def num_loading(self) -> int:
        """Requests that hold blocks and wait here."""
        return 0

    @property
    def waiting(self) -> Iterable[Request]:
        """All requests that wait here."""
        return ()

    @property
    def orphans(self) -> list[list[int]]:
        """Blocks of requests that ended, out of use until a copy is over."""
        return []

    def drain(self, pool_changes: KvEvents) -> KvEvents:
        """The pool's changes, with those of all places together."""
        return pool_changes

    def snapshot(self, pool_snapshot: KvEvents) -> KvEvents:
        """The same for everything there is now."""
        return pool_snapshot

    def report(self) -> tuple[TierLoad, ...]:
        """For gateways: the pool, and what is below it; nothing without tiers."""
        return ()

    def statistics(self) -> TierStatistics | None:
        """None without tiers."""
        return None

    def check_integrity(self) -> None:
        """Raises BatonError if a block of host memory is lost."""

    def close(self) -> None:
        """Stops the threads."""
