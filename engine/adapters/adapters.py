"""An engine's adapters as its owner sees them: loaded, unloaded, counted."""

from __future__ import annotations

from dataclasses import dataclass

from baton.engine.adapters.gate import AdapterGate
from baton.engine.adapters.memory import AdapterMemory
from baton.engine.adapters.slots import AdapterSlots
from baton.engine.adapters.store import AdapterStore
from baton.engine.config import EngineConfig
from baton.protos.adapters import AdapterRef
from baton.protos.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterStatus:
    """One loaded adapter. num_requests: in the engine now; num_rows: in the batch now;
    num_served: requests since it was loaded. leaving: unloaded, and gone with its last request."""

    ref: AdapterRef
    num_bytes: int
    on_device: bool
    leaving: bool
    num_requests: int
    num_rows: int
    num_served: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterStatistics:
    """What is loaded, and counts since the engine was built.

    num_slots: places on the device. num_loads, load_s: folders read into CPU memory, and how long
    that took; num_copies, copy_s: copies to the device; num_evictions: those that took another
    one's place; num_hits: requests that found theirs on the device when their turn came.
    """

    adapters: tuple[AdapterStatus, ...]
    num_slots: int
    num_loads: int
    load_s: float
    num_copies: int
    copy_s: float
    num_evictions: int
    num_hits: int


class Adapters:
    """`Engine.adapters`. What is public here may be called from any thread; `gate` may not."""

    def __init__(self, memory: AdapterMemory | None, config: EngineConfig, clock: Clock) -> None:
        self._store = AdapterStore(memory, config.max_cpu_loras, clock)
        self._slots = AdapterSlots(memory, config.max_loras, clock)
        self.gate = AdapterGate(self._store, self._slots)

    @property
    def slots(self) -> AdapterSlots:
        return self._slots

    def load(self, ref: AdapterRef) -> None:
        """Reads the folder into CPU memory and checks it, on this thread: requests may name
        `ref.adapter_id` when it returns. At once if that is loaded already.

        Raises AdapterError that names file, tensor or key, or says that adapters are off, the
        folder is not what `ref` names, or `max_cpu_loras` are loaded.
        """
        self._store.load(ref)

    def unload(self, adapter_id: str) -> None:
        """Refuses new requests for it at once, and frees it when its last request is over.

        Raises AdapterNotFoundError.
        """
        self._store.unload(adapter_id)

    def resident(self) -> AdapterStatistics:
        """What is loaded where, and the counts."""
        slots = {slot.adapter_id: slot for slot in self._slots.slots if not slot.copying}
        adapters = []
        for entry in self._store.entries():
            slot = slots.get(entry.ref.adapter_id)
            adapters.append(
                AdapterStatus(
                    ref=entry.ref,
                    num_bytes=entry.host.num_bytes,
                    on_device=slot is not None,
                    leaving=entry.leaving,
                    num_requests=entry.num_requests,
                    num_rows=0 if slot is None else slot.pins,
                    num_served=entry.num_served,
                )
            )
        return AdapterStatistics(
            adapters=tuple(adapters),
            num_slots=len(self._slots.slots),
            num_loads=self._store.num_read,
            load_s=self._store.read_s,
            num_copies=self._slots.num_copies,
            copy_s=self._slots.copy_s,
            num_evictions=self._slots.num_evictions,
            num_hits=self.gate.num_hits,
        )
