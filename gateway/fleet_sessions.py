"""Which decode worker served a session last."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

_MAX_SESSIONS: Final = 1 << 16


class Sessions:
    """Remembers the sessions that were served last, by name; requests without one are not."""

    def __init__(self) -> None:
        self._workers: OrderedDict[str, str] = OrderedDict()

    def last(self, session: str) -> str | None:
        """The worker's id, if it is remembered."""
        return self._workers.get(session)

    def served(self, session: str, worker_id: str) -> None:
        """A request of the session was sent there."""
        if not session:
            return
        self._workers[session] = worker_id
        self._workers.move_to_end(session)
        if len(self._workers) > _MAX_SESSIONS:
            self._workers.popitem(last=False)
