"""Tokens a minute, with a minute's worth at once."""

from __future__ import annotations


class TokenBucket:
    """Fills at `per_second` up to `capacity`, and may be overdrawn: what a request will generate is
    known only when it has. Whoever finds it empty waits until the debt is paid.
    """

    def __init__(self, per_second: float, capacity: float) -> None:
        self._per_second = per_second
        self._capacity = capacity
        self._level = capacity
        self._filled_s: float | None = None

    def wait_s(self, now_s: float) -> float:
        """Seconds until a request may come; 0.0 is now."""
        self._fill(now_s)
        return 0.0 if self._level > 0 else -self._level / self._per_second + 1e-6

    def take(self, tokens: float, now_s: float) -> None:
        self._fill(now_s)
        self._level -= tokens

    def give_back(self, tokens: float) -> None:
        """For a request that was never served."""
        self._level = min(self._capacity, self._level + tokens)

    def _fill(self, now_s: float) -> None:
        if self._filled_s is not None:
            passed_s = max(0.0, now_s - self._filled_s)
            self._level = min(self._capacity, self._level + passed_s * self._per_second)
        self._filled_s = now_s
