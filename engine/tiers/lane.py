"""Threads that do an engine's slow errands, one after the other, and report to its own thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from baton.protos.errors import BatonError

T = TypeVar("T")

_CLOSE_S: Final = 30.0


class News:
    """Results on their way to the engine's thread.

    wake: called, on the thread that brings them, when there are some.
    """

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self.wake: Callable[[], None] = lambda: None

    def __bool__(self) -> bool:
        return bool(self._calls)

    def put(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        self.wake()

    def take_in(self) -> None:
        """On the engine's thread: makes the calls, in their order."""
        while self._calls:
            self._calls.popleft()()


class Lane(Protocol):
    """One errand at a time, in order, but those that a request waits for first."""

    def submit(
        self, work: Callable[[], T], done: Callable[[T], None], *, urgent: bool = False
    ) -> bool:
        """`work` runs elsewhere, then `done` gets its result on the engine's thread.

        False, and nothing happens, when too many wait. What `work` raises ends the engine.
        """
        ...

    def close(self) -> None:
        """Finishes the errand under way and drops those that wait."""
        ...


class ThreadLane:
    """A lane on a thread. At most `max_waiting` errands of each kind wait."""

    def __init__(self, name: str, news: News, *, max_waiting: int = 256) -> None:
        self._news = news
        self._max_waiting = max_waiting
        self._urgent: deque[Callable[[], None]] = deque()
        self._others: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._main, name=f"kv-{name}", daemon=True)
        self._thread.start()

    def submit(
        self, work: Callable[[], T], done: Callable[[T], None], *, urgent: bool = False
    ) -> bool:
        """See `Lane`."""

        def errand() -> None:
            result = work()
            self._news.put(lambda: done(result))

        queue = self._urgent if urgent else self._others
        with self._changed:
            if self._closing or len(queue) >= self._max_waiting:
                return False
            queue.append(errand)
            self._changed.notify()
        return True

    def close(self) -> None:
        """See `Lane`. Waits for the errand under way, but not for ever."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_S)

    def _main(self) -> None:
        while (errand := self._next()) is not None:
            try:
                errand()
            # Whatever it was: the engine's thread raises it, as if it had happened there.
            except BaseException as error:
                self._news.put(lambda error=error: _raise(error))  # type: ignore[misc]

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not (self._urgent or self._others or self._closing):
                self._changed.wait()
            if self._closing:
                return None
            return (self._urgent or self._others).popleft()


def _raise(error: BaseException) -> None:
    raise BatonError(f"moving KV blocks failed: {error}") from error
