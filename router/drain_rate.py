"""How fast work leaves a waiting room, measured only while something waits."""

from __future__ import annotations

import math

_MEMORY_S = 10.0


class DrainRate:
    """Cost per second, averaged over about the last ten seconds in which something waited.

    A room that nobody waits in says nothing about how fast it could be emptied, so that time is
    left out; time in which somebody waits and nothing leaves counts in full.
    """

    def __init__(self) -> None:
        self._cost = 0.0
        self._time_s = 0.0
        self._since_s: float | None = None

    def backlog_began(self, now_s: float) -> None:
        """Somebody waits from now on."""
        self._since_s = now_s

    def served(self, cost: float, now_s: float, *, backlog: bool) -> None:
        """`cost` left; `backlog` is whether somebody still waits."""
        elapsed_s = self._elapsed_s(now_s)
        decay = math.exp(-elapsed_s / _MEMORY_S)
        self._cost = self._cost * decay + cost
        self._time_s = self._time_s * decay + elapsed_s
        self._since_s = now_s if backlog else None

    def seconds(self, cost: float, now_s: float) -> float:
        """How long that much takes to leave; 0.0 while no rate is known."""
        elapsed_s = self._elapsed_s(now_s)
        decay = math.exp(-elapsed_s / _MEMORY_S)
        time_s = self._time_s * decay + elapsed_s
        if self._cost <= 0 or time_s <= 0:
            return 0.0
        return cost * time_s / (self._cost * decay)

    def _elapsed_s(self, now_s: float) -> float:
        return 0.0 if self._since_s is None else max(0.0, now_s - self._since_s)
