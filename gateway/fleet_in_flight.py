"""What was sent to a worker that its last load report cannot know of yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class _Entry(NamedTuple):
    sent_s: float
    num_tokens: int


class InFlight:
    """Requests by id with their prompt tokens; sums are kept, not recounted.

    An entry leaves by a report that is newer than it, or when its request ends, whichever is
    first: an aborted request is never counted twice or for ever. `changed` is called after every
    change.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._entries: dict[int, _Entry] = {}
        self.num_tokens = 0

    @property
    def num_requests(self) -> int:
        return len(self._entries)

    def add(self, key: int, sent_s: float, num_tokens: int) -> None:
        self.remove(key)
        self._entries[key] = _Entry(sent_s, num_tokens)
        self.num_tokens += num_tokens
        self._changed()

    def remove(self, key: int) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_tokens -= entry.num_tokens
            self._changed()

    def settle(self, before_s: float) -> None:
        """Drops what was sent before `before_s`. Entries are in the order of sending."""
        settled = []
        for key, entry in self._entries.items():
            if entry.sent_s > before_s:
                break
            settled.append(key)
        for key in settled:
            self.remove(key)

    def clear(self) -> None:
        self._entries.clear()
        self.num_tokens = 0
        self._changed()
