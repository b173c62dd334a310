"""Stop strings over text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StopResult(NamedTuple):
    """`text` may be sent; `stopped` says that it ends where a stop string began (or ended, if
    kept).
    """

    text: str
    stopped: bool


class StopChecker:
    """Finds the stop string that is complete first, whatever the pieces; holds back only what may
    begin one.

    With `keep` the text includes the stop string. Of two that are complete at once the longer one
    counts.
    """

    __slots__ = ("_held", "_keep", "_stops", "_tails")

    def __init__(self, stops: Sequence[str], *, keep: bool = False) -> None:
        if not stops or not all(stops):
            raise ValueError(f"stops must be non-empty strings, got {list(stops)!r}")
        self._stops = tuple(stops)
        self._keep = keep
        self._held = ""
        # Every proper beginning of a stop string, longest first: text that ends in one must wait.
        beginnings = {stop[:size] for stop in stops for size in range(1, len(stop))}
        self._tails = tuple(sorted(beginnings, key=len, reverse=True))

    def push(self, text: str) -> StopResult:
        """Returns the text that is certain now. After `stopped` nothing more may be pushed."""
        buffer = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if found:
            end, start = min(found)
            self._held = ""
            return StopResult(buffer[: end if self._keep else start], True)
        tail = next((t for t in self._tails if buffer.endswith(t)), "")
        self._held = tail
        return StopResult(buffer[: len(buffer) - len(tail)], False)

    def finish(self) -> str:
        """The text that was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held
