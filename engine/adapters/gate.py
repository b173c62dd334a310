"""Lets requests into the batch when their adapter is on the device; others pass them meanwhile."""

from __future__ import annotations

from collections.abc import Collection
from operator import attrgetter

from baton.engine.adapters.slots import AdapterSlots, Slot
from baton.engine.adapters.store import AdapterStore
from baton.engine.request import Request, RequestState
from baton.protos.errors import BatonError


class AdapterGate:
    """Belongs to the engine's thread. A request without an adapter costs a test of its id.

    A request of the batch pins its adapter's slot. One that comes to its turn and finds its adapter
    elsewhere waits here until a slot was filled with it, and that slot is promised to it until it
    is in the batch. A request that already holds KV blocks may take a slot that is promised to
    one that does not, which may be waiting for those very blocks.
    """

    def __init__(self, store: AdapterStore, slots: AdapterSlots) -> None:
        self._store = store
        self._slots = slots
        self._waiting: dict[str, Request] = {}
        self.num_hits = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting(self) -> list[Request]:
        """Those that wait for their adapter, in no order."""
        return list(self._waiting.values())

    def enter(self, request: Request) -> None:
        """A new request: its adapter stays loaded until `leave`. AdapterNotFoundError."""
        adapter_id = request.adapter_id
        if not adapter_id:
            return
        self._store.acquire(adapter_id)
        slot, host = self._slots.empty(), self._store.host(adapter_id)
        if slot is not None and host is not None and self._slots.find(adapter_id) is None:
            self._slots.fill(slot, adapter_id, host)

    def leave(self, request: Request) -> None:
        """The request is over, wherever it was outside the batch."""
        if not request.adapter_id:
            return
        self.unpin(request)
        self._waiting.pop(request.request_id, None)
        slot = self._slots.find(request.adapter_id)
        if slot is not None:
            slot.promised.discard(request.request_id)
        self._store.release(request.adapter_id)

    def may_join(self, request: Request) -> bool:
        """Whether its adapter is here; else it is to wait in this gate."""
        if not request.adapter_id or self._slots.ready(request.adapter_id) is not None:
            return True
        self._waiting[request.request_id] = request
        return False

    def pin(self, request: Request) -> None:
        """It joins the batch, as it may, or is about to; again does nothing."""
        if not request.adapter_id or request.adapter_slot >= 0:
            return
        slot = self._slots.ready(request.adapter_id)
        if slot is None:
            raise BatonError(f"request {request.request_id} joins without its adapter")
        self.num_hits += request.request_id not in slot.promised
        slot.promised.discard(request.request_id)
        slot.pins += 1
        self._slots.touch(slot)
        request.adapter_slot = slot.index

    def unpin(self, request: Request) -> None:
        """It leaves the batch."""
        if request.adapter_slot >= 0:
            self._slots.slots[request.adapter_slot].pins -= 1
            request.adapter_slot = -1

    @property
    def has_work(self) -> bool:
        """Whether `take_ready` would return something, or `fetch` could start something."""
        return any(
            self._slots.ready(request.adapter_id) is not None
            or self._place_for(request) is not None
            for request in self._waiting.values()
        )

    def take_ready(self) -> list[Request]:
        """Those whose adapter has come."""
        found = []
        for request in self.waiting:
            slot = self._slots.ready(request.adapter_id)
            if slot is not None:
                slot.promised.add(request.request_id)
                del self._waiting[request.request_id]
                found.append(request)
        return found

    def fetch(self) -> None:
        """Starts to bring what is waited for, the first in order first, where a slot gives way."""
        for request in sorted(self._waiting.values(), key=attrgetter("order")):
            slot, host = self._place_for(request), self._store.host(request.adapter_id)
            if slot is not None and host is not None:
                self._slots.fill(slot, request.adapter_id, host)

    def check_integrity(self, requests: Collection[Request]) -> None:
        """Raises BatonError unless the batch's requests, and no others, pin the slots they use."""
        for slot in self._slots.slots:
            users = [r for r in requests if r.adapter_slot == slot.index]
            wrong = [r.request_id for r in users if r.adapter_id != slot.adapter_id]
            if wrong or slot.pins != len(users) or (users and slot.copying):
                raise BatonError(
                    f"adapter slot {slot.index} holds {slot.adapter_id!r} with {slot.pins} pins,"
                    f" but {[r.request_id for r in users]} use it, {wrong} of them wrongly"
                )
        loading = {r.request_id for r in requests if r.state is RequestState.COLD}
        if loading != self._waiting.keys():
            raise BatonError(f"requests {loading ^ self._waiting.keys()} wait for no adapter")

    def _place_for(self, request: Request) -> Slot | None:
        """A slot to bring its adapter to, unless that is here or on its way."""
        if self._slots.find(request.adapter_id) is not None:
            return None
        return self._slots.yielding(self._is_loaded, firmly=bool(request.block_ids))

    def _is_loaded(self, adapter_id: str) -> bool:
        return self._store.host(adapter_id) is not None
