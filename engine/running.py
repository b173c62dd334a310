"""The requests in the batch, and the rows of batch state that they occupy."""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterator
from operator import attrgetter
from typing import Protocol

from baton.engine.adapters.gate import AdapterGate
from baton.engine.batch import ScheduledRow
from baton.engine.request import Request
from baton.protos.errors import BatonError


class BatchRows(Protocol):
    """The part of a runner that keeps a row of sampling state for each request in the batch."""

    def add_row(self, request: Request) -> None: ...
    def remove_row(self, request: Request) -> None: ...


class RunningBatch:
    """At most `max_running` requests, each in a slot: `prefilling` in order, `decoding` by slot.

    A request is in one of the two; whoever moves it changes its state too. Its adapter, which must
    be on the device when it enters, is pinned there until it leaves.
    """

    def __init__(self, max_running: int, rows: BatchRows, adapters: AdapterGate) -> None:
        self.prefilling: list[Request] = []
        self.decoding: dict[int, Request] = {}
        self._max_running = max_running
        self._rows = rows
        self._adapters = adapters
        # A heap: the lowest slots first keep the runner's batch state dense.
        self._slots = list(range(max_running))

    def __len__(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    def __iter__(self) -> Iterator[Request]:
        yield from self.prefilling
        yield from self.decoding.values()

    @property
    def num_slots(self) -> int:
        """How many requests may enter."""
        return len(self._slots)

    def enter_prefill(self, request: Request) -> None:
        """It takes its place in the order of `prefilling`."""
        self._take_slot(request)
        insort(self.prefilling, request, key=attrgetter("order"))

    def enter_decode(self, request: Request) -> None:
        self._take_slot(request)
        self.decoding[request.slot] = request

    def start_decode(self, request: Request) -> None:
        """From `prefilling` to `decoding`, in the same slot."""
        self.prefilling.remove(request)
        self.decoding[request.slot] = request

    def leave(self, request: Request) -> None:
        """Frees its slot, from either part."""
        if self.decoding.get(request.slot) is request:
            del self.decoding[request.slot]
        else:
            self.prefilling.remove(request)
        self._rows.remove_row(request)
        self._adapters.unpin(request)
        heapq.heappush(self._slots, request.slot)
        request.slot = -1

    def decode_rows(self, budget: int) -> list[ScheduledRow]:
        """A row for each decode that has a token to compute: that one, and as far as the budget of
        tokens goes those that are known beyond it.
        """
        spare = max(budget - len(self.decoding), 0)
        rows = []
        for request in self.decoding.values():
            if request.ends_with_pending:
                continue
            wanted = request.num_uncomputed_tokens
            granted = min(wanted, 1 + spare)
            spare -= granted - 1
            rows.append(
                ScheduledRow(request=request, num_new_tokens=granted, samples=granted == wanted)
            )
        return rows

    def last_in_order(self) -> Request | None:
        """Who gives way first. A held request does not: a peer is being sent its blocks."""
        candidates = [request for request in self.prefilling if not request.hold]
        candidates += self.decoding.values()
        return max(candidates, key=lambda request: request.order, default=None)

    def check_integrity(self) -> None:
        """Raises BatonError unless each slot is free or has exactly one request."""
        used = [request.slot for request in self.prefilling]
        used += [slot for slot, request in self.decoding.items() if request.slot == slot]
        if sorted(used + self._slots) != list(range(self._max_running)):
            raise BatonError(f"slots in use {sorted(used)} and free {sorted(self._slots)} disagree")
        if len(used) != len(self):
            raise BatonError("a decoding request is kept under another slot than its own")

    def _take_slot(self, request: Request) -> None:
        request.slot = heapq.heappop(self._slots)
        self._adapters.pin(request)
        self._rows.add_row(request)
