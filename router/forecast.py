"""The load that is coming: level and trend of a rate, from what arrived so far."""

from __future__ import annotations

import math

_FAST_S = 10.0
SLOW_S = 60.0


class Average:
    """Exponentially weighted over time; weight that is missing at the start is made up for."""

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float, elapsed_s: float) -> None:
        keep = math.exp(-elapsed_s / self._memory_s)
        self._sum = self._sum * keep + value * (1 - keep)
        self._weight = self._weight * keep + (1 - keep)

    @property
    def mean(self) -> float:
        return self._sum / self._weight if self._weight else 0.0


class Forecast:
    """Double exponential smoothing (Brown, 1956): two averages of different memory differ by the
    slope times the difference of their lags.

    Arrivals at random differ from each other without any change of the load. So the difference
    counts only as far as it is more than twice what chance makes of it (James and Stein, 1961);
    otherwise the load is the slower average, and does not rise.

    Falling load is not extrapolated: a pool that was made too small too early costs an SLO, one
    that is too large for a minute costs a minute.
    """

    def __init__(self) -> None:
        self._fast = Average(_FAST_S)
        self._slow = Average(SLOW_S)
        # Of what each call tells, times its seconds: the variance that counts in a second have.
        self._variance = Average(SLOW_S)
        # The same from the differences of neighbours, which a change of the load hardly touches
        # (von Neumann, 1941).
        self._jitter = Average(SLOW_S)
        self._last: tuple[float, float] | None = None

    def add(self, rate: float, now_s: float) -> None:
        """`rate` is what was seen since the last call."""
        last_s, last = self._last or (now_s - 1.0, rate)
        elapsed_s = max(0.0, now_s - last_s)
        if self._last is not None and elapsed_s > 0:
            self._variance.add((rate - self._fast.mean) ** 2 * elapsed_s, elapsed_s)
            self._jitter.add(0.5 * (rate - last) ** 2 * elapsed_s, elapsed_s)
        self._last = now_s, rate
        self._fast.add(rate, elapsed_s)
        self._slow.add(rate, elapsed_s)

    @property
    def level(self) -> float:
        """The slower average."""
        return self._slow.mean

    def ahead(self, horizon_s: float, deviations: float = 0.0) -> float:
        """The rate expected in `horizon_s` seconds; at most twice what it is now.

        deviations: so many standard errors of the slower average are added, for those to whom more
        than expected is worse than less. Of few requests a second little is known.
        """
        difference = self._fast.mean - self._slow.mean
        chance = self._variance.mean / (2 * _FAST_S)
        unsure = deviations * math.sqrt(self._jitter.mean / (2 * SLOW_S))
        if not difference:
            return self._slow.mean + unsure
        believed = difference * max(0.0, 1 - 4 * chance / difference**2)
        now = self._slow.mean + believed + unsure
        slope = believed / (SLOW_S - _FAST_S)
        return min(2 * now, max(now, now + slope * (horizon_s + _FAST_S)))
