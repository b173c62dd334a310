"""Which adapter is in which slot of the device, and which gives way to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from baton.engine.adapters.memory import AdapterMemory, HostCopy
from baton.protos.clock import Clock


@dataclass(slots=True)
class Slot:
    """adapter_id "": empty. copying: on its way; it stays until it is here.

    pins: requests of the batch that use it. promised: requests that it was brought for, and that
    are not in the batch yet. used: a count that grows, the least is the longest ago.
    """

    index: int
    adapter_id: str = ""
    copying: bool = False
    error: BaseException | None = None
    pins: int = 0
    promised: set[str] = field(default_factory=set)
    used: int = 0


class AdapterSlots:
    """The least recently used gives way, unless the batch uses it.

    Belongs to the engine's thread. wake: called from another one when a copy has ended.
    """

    def __init__(self, memory: AdapterMemory | None, num_slots: int, clock: Clock) -> None:
        self._memory = memory
        self._clock = clock
        self._uses = 0
        self.slots = tuple(Slot(index) for index in range(num_slots))
        self.wake: Callable[[], None] = lambda: None
        self.num_copies = 0
        self.num_evictions = 0
        self.copy_s = 0.0

    def find(self, adapter_id: str) -> Slot | None:
        """The slot that holds it, or will when its copy has ended."""
        return next((slot for slot in self.slots if slot.adapter_id == adapter_id), None)

    def ready(self, adapter_id: str) -> Slot | None:
        """The slot that holds it, whole. Raises what its copy failed with."""
        slot = self.find(adapter_id)
        if slot is None or slot.copying:
            return None
        if slot.error is not None:
            raise slot.error
        return slot

    def touch(self, slot: Slot) -> None:
        """It is used now."""
        self._uses += 1
        slot.used = self._uses

    def empty(self) -> Slot | None:
        return next((slot for slot in self.slots if not slot.adapter_id), None)

    def yielding(self, is_loaded: Callable[[str], bool], *, firmly: bool) -> Slot | None:
        """The slot that may be filled anew: one of what is unloaded, or the least recently used.

        firmly: also one that is promised.
        """
        free = [
            slot
            for slot in self.slots
            if not (slot.pins or slot.copying) and (firmly or not slot.promised)
        ]
        return min(free, key=lambda s: (is_loaded(s.adapter_id), s.used), default=None)

    def fill(self, slot: Slot, adapter_id: str, host: HostCopy) -> None:
        """Starts to bring an adapter."""
        if self._memory is None:
            return
        self.num_copies += 1
        self.num_evictions += slot.adapter_id != ""
        slot.adapter_id, slot.error, slot.copying = adapter_id, None, True
        slot.promised.clear()
        self.touch(slot)
        started_s = self._clock.now_s()

        def done(error: BaseException | None) -> None:
            self.copy_s += self._clock.now_s() - started_s
            slot.error = error
            # Last: from here on the engine's thread may use the slot.
            slot.copying = False
            self.wake()

        self._memory.copy(host, slot.index, done)
