"""How long a block takes, from what was seen lately."""

from __future__ import annotations

from typing import Final

_WEIGHT: Final = 0.2
_FORGOTTEN: Final = 1 / 32


class Rate:
    """A ratio of moving averages, so that many units at once weigh more than a few."""

    def __init__(self) -> None:
        self._units = 0.0
        self._seconds = 0.0

    @property
    def seconds_per_unit(self) -> float:
        """0 before anything was measured."""
        return self._seconds / self._units if self._units else 0.0

    def estimate_s(self, units: int) -> float:
        return units * self.seconds_per_unit

    def observe(self, units: int, seconds: float) -> None:
        weight = _WEIGHT if self._units else 1.0
        self._units += weight * (units - self._units)
        self._seconds += weight * (seconds - self._seconds)

    def forget_a_little(self) -> None:
        """A rate that keeps everybody away is never measured again: it must fade."""
        self._seconds *= 1 - _FORGOTTEN
