"""Times between tokens, millions of them, in a histogram of constant size."""

from __future__ import annotations

import math
from typing import Final

_LOWEST_S: Final = 1e-5
# Neighbouring bins differ by 1 %, so a percentile is off by half of that at most.
_LOG_RATIO: Final = math.log(1.01)
_NUM_BINS: Final = 2000


class GapHistogram:
    """Counts of gaps by size, from 10 µs up in steps of 1 %."""

    def __init__(self) -> None:
        self._counts = [0.0] * _NUM_BINS
        self.total = 0.0

    def add(self, gap_s: float, count: float = 1.0) -> None:
        self._counts[_bin(gap_s)] += count
        self.total += count

    def add_ramp(self, first_s: float, last_s: float, count: float) -> None:
        """`count` gaps spread evenly between two sizes."""
        low, high = _bin(first_s), _bin(last_s)
        if low == high:
            self._counts[low] += count
        else:
            share = count / (high - low + 1)
            for index in range(low, high + 1):
                self._counts[index] += share
        self.total += count

    def quantile(self, share: float) -> float | None:
        """The gap that `share` of all are not above; None when there is none."""
        if self.total <= 0:
            return None
        left = share * self.total
        last = 0
        for index, count in enumerate(self._counts):
            if count > 0:
                last = index
                left -= count
                if left <= 0:
                    break
        return _LOWEST_S * math.exp((last + 0.5) * _LOG_RATIO)


def _bin(gap_s: float) -> int:
    if gap_s <= _LOWEST_S:
        return 0
    return min(_NUM_BINS - 1, int(math.log(gap_s / _LOWEST_S) / _LOG_RATIO))
