"""What a worker tells of its own speed: the twin of the engine's meter, many steps at a time."""

from __future__ import annotations

from typing import Final

_WEIGHT: Final = 0.1


class Meter:
    """Moving averages over recent steps, 0.0 until something was measured."""

    def __init__(self) -> None:
        self._prefill_tokens = 0.0
        self._prefill_s = 0.0
        self.decode_step_s = 0.0
        self.itl_s = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        return self._prefill_tokens / self._prefill_s if self._prefill_s > 0 else 0.0

    def prefilled(self, num_tokens: int, duration_s: float) -> None:
        """One step that computed part of a prompt."""
        weight = _WEIGHT if self._prefill_s > 0 else 1.0
        self._prefill_tokens += weight * (num_tokens - self._prefill_tokens)
        self._prefill_s += weight * (duration_s - self._prefill_s)

    def decoded(self, mean_step_s: float, num_steps: int, *, prefill: bool) -> None:
        """Steps in which requests decoded; `prefill`: beside part of a prompt."""
        self.itl_s = _moved(self.itl_s, mean_step_s, num_steps)
        if not prefill:
            self.decode_step_s = _moved(self.decode_step_s, mean_step_s, num_steps)


def _moved(average: float, value: float, count: int) -> float:
    kept = (1 - _WEIGHT) ** count if average > 0 else 0.0
    return value + kept * (average - value)
