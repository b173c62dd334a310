"""A queue of commands for one thread that sleeps for microseconds at a time.

Not `queue.SimpleQueue`: in CPython 3.11 its `get` waits for ever when a short timeout runs out
between two looks at its lock, which left a connector asleep until somebody's next command.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """Any thread puts; one thread takes. Whoever puts bounds what is in it."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        # Held while there is nothing new: to wait is to acquire it.
        self._empty = threading.Lock()
        self._empty.acquire()

    def put(self, item: Item) -> None:
        self._items.append(item)
        # Another put may have released it just now.
        with contextlib.suppress(RuntimeError):
            self._empty.release()

    def take(self, timeout_s: float = 0.0) -> Item | None:
        """The oldest item, or None if there is none within `timeout_s` (or sometimes earlier)."""
        if not self._items:
            self._empty.acquire(timeout=timeout_s)
        return self._items.popleft() if self._items else None
