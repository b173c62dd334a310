"""Requests that wait, in the order in which they may go on."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from baton.engine.request import Request

_order = attrgetter("order")


class WaitingQueue:
    """Sorted by (priority, arrival); `num_tokens` is what its members know, computed or not.

    A request must not change its tokens or its order while it is in the queue.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    @property
    def first(self) -> Request | None:
        return self._requests[0] if self._requests else None

    def add(self, request: Request) -> None:
        insort(self._requests, request, key=_order)
        self.num_tokens += request.num_tokens

    def remove(self, request: Request) -> None:
        """Raises ValueError if it is not here."""
        index = bisect_left(self._requests, request.order, key=_order)
        if index == len(self._requests) or self._requests[index] is not request:
            raise ValueError(f"request {request.request_id} is not in this queue")
        del self._requests[index]
        self.num_tokens -= request.num_tokens
