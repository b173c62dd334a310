"""The simulation's clock and what is due."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Events:
    """Actions in the order of their times; those of one moment in the order of their asking.

    It is also a `Clock`: `now_s()` is the time of the action that runs.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def now_s(self) -> float:
        return self.now

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Runs `action` at that time, or now if it is past."""
        self._count += 1
        heapq.heappush(self._due, (max(time_s, self.now), self._count, action))

    def step(self) -> bool:
        """Runs the next action; False when nothing is due any more."""
        if not self._due:
            return False
        self.now, _, action = heapq.heappop(self._due)
        action()
        return True
