"""One lower tier on a lane of its own: what is asked of it, how fast it is, whether it works."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from baton.engine.tiers.lane import Lane
from baton.engine.tiers.rate import Rate
from baton.engine.tiers.statistics import LowerStatistics
from baton.kvtransfer.tiers.tier import Tier
from baton.protos.clock import Clock
from baton.protos.errors import BatonError
from baton.protos.types import KvEvents

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Outcome:
    count: int | None
    seconds: float
    changes: KvEvents


class TierLane:
    """Belongs to the engine's thread; the tier is used on the lane's.

    on_changes: gets what came and went. max_storing: blocks that may be on their way there, in
        slots that nobody else can have meanwhile.
    A tier that fails is left alone for a second, and twice as long each time it fails again.
    """

    def __init__(
        self,
        tier: Tier,
        lane: Lane,
        clock: Clock,
        on_changes: Callable[[KvEvents], None],
        max_storing: int,
    ) -> None:
        self.name = tier.name
        self._tier = tier
        self._lane = lane
        self._clock = clock
        self._on_changes = on_changes
        self.load_rate = Rate()
        self._lookup_rate = Rate()
        self.max_storing = max(1, max_storing)
        self._storing = 0
        self._loading = 0
        self._num_under_way = 0
        self._paused_until_s = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._num_wanted = self._num_hits = self._num_declined = 0
        self._num_stored = self._num_dropped = self._num_errors = 0
        # What an earlier process left is told before anything is asked.
        self._submit(lambda: 0, lambda _: None, urgent=True)

    @property
    def is_busy(self) -> bool:
        """Whether anything was asked that is not answered yet."""
        return self._num_under_way > 0

    @property
    def is_paused(self) -> bool:
        return self._clock.now_s() < self._paused_until_s

    def estimate_s(self, num_blocks: int) -> float:
        """From asking until so many blocks are in host memory; 0 before anything was measured."""
        waiting_s = self.load_rate.estimate_s(self._loading + num_blocks)
        return waiting_s + self._lookup_rate.estimate_s(1)

    def lookup(self, hashes: Sequence[bytes], done: Callable[[int], None]) -> bool:
        """`done` gets how many leading blocks are there, 0 after an error. False: not asked."""

        def found(outcome: _Outcome) -> None:
            self._lookup_rate.observe(1, outcome.seconds)
            done(outcome.count or 0)

        if not self._submit(lambda: self._tier.lookup(hashes), found, urgent=True):
            return False
        self._num_wanted += len(hashes)
        return True

    def load(
        self, hashes: Sequence[bytes], slots: Sequence[int], done: Callable[[int], None]
    ) -> bool:
        """`done` gets how many leading slots are filled. False: not asked."""

        def loaded(outcome: _Outcome) -> None:
            self._loading -= len(hashes)
            count = outcome.count or 0
            self._num_hits += count
            if count:
                self.load_rate.observe(count, outcome.seconds)
            done(count)

        if not self._submit(lambda: self._tier.load(hashes, slots), loaded, urgent=True):
            return False
        self._loading += len(hashes)
        return True

    def declined(self, num_blocks: int) -> None:
        """They are there, but computing them is quicker."""
        self._num_declined += num_blocks
        self.load_rate.forget_a_little()

    @property
    def room(self) -> int:
        """Blocks that may be stored now."""
        return 0 if self.is_paused else self.max_storing - self._storing

    def dropped(self, num_blocks: int) -> None:
        """They were to be stored, and are gone."""
        self._num_dropped += num_blocks

    def store(
        self, hashes: Sequence[bytes], slots: Sequence[int], done: Callable[[], None]
    ) -> bool:
        """`done` is called when the slots are no longer read. False: not taken, and counted."""

        def stored(outcome: _Outcome) -> None:
            self._storing -= len(hashes)
            self._num_stored += outcome.count or 0
            done()

        if self._submit(lambda: self._tier.store(hashes, slots), stored):
            self._storing += len(hashes)
            return True
        self._num_dropped += len(hashes)
        return False

    def statistics(self) -> LowerStatistics:
        return LowerStatistics(
            name=self.name,
            store=self._tier.statistics(),
            num_wanted=self._num_wanted,
            num_hits=self._num_hits,
            num_declined=self._num_declined,
            num_stored=self._num_stored,
            num_dropped=self._num_dropped,
            num_errors=self._num_errors,
            load_s_per_block=self.load_rate.seconds_per_unit,
        )

    def close(self) -> None:
        self._lane.close()
        self._tier.close()

    def _submit(
        self, call: Callable[[], int], done: Callable[[_Outcome], None], *, urgent: bool = False
    ) -> bool:
        def work() -> _Outcome:
            began_s = self._clock.now_s()
            count: int | None = None
            try:
                count = call()
            except BatonError as error:
                _log.warning("tier %s: %s", self.name, error)
            return _Outcome(count, self._clock.now_s() - began_s, self._tier.drain_changes())

        def over(outcome: _Outcome) -> None:
            self._num_under_way -= 1
            if outcome.changes:
                self._on_changes(outcome.changes)
            if outcome.count is None:
                self._num_errors += 1
                self._paused_until_s = self._clock.now_s() + self._pause_s
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            else:
                self._pause_s = _FIRST_PAUSE_S
            done(outcome)

        if self.is_paused or not self._lane.submit(work, over, urgent=urgent):
            return False
        self._num_under_way += 1
        return True
