"""The seam between deciding which adapters are on the device and moving them there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from baton.protos.adapters import AdapterRef

# Of a copy: None, or what went wrong.
Copied = Callable[[BaseException | None], None]


class HostCopy(Protocol):
    """An adapter in CPU memory, of all ranks together."""

    @property
    def num_bytes(self) -> int: ...


class AdapterMemory(Protocol):
    """Reads adapters into CPU memory and copies them into slots of the device.

    read: from any thread; AdapterError when the folder is not the one that `ref` names, or does
        not fit the model. forget: from any thread, a copy that no slot will be filled from again;
        a copy into a slot that is under way is not disturbed.
    copy: on the engine's thread; returns at once, and `done` comes from another one. Steps that
        were launched before still see what was in the slot.
    """

    def read(self, ref: AdapterRef) -> HostCopy: ...
    def forget(self, host: HostCopy) -> None: ...
    def copy(self, host: HostCopy, slot: int, done: Copied) -> None: ...
