"""Adapters without numbers: which id is in which slot, and copies that end when a test says so."""

from __future__ import annotations

from dataclasses import dataclass

from baton.engine.adapters.memory import Copied, HostCopy
from baton.protos.adapters import AdapterRef


@dataclass(frozen=True)
class FakeCopy:
    adapter_id: str
    num_bytes: int = 1


class FakeMemory:
    """What a step that is launched sees is `contents`; None: half of something."""

    def __init__(self, num_slots: int) -> None:
        self.contents: list[str | None] = [None] * num_slots
        self.under_way: list[tuple[str, int, Copied]] = []
        self.forgotten: list[str] = []
        self.instant = False

    def read(self, ref: AdapterRef) -> FakeCopy:
        return FakeCopy(ref.adapter_id)

    def forget(self, host: HostCopy) -> None:
        assert isinstance(host, FakeCopy)
        self.forgotten.append(host.adapter_id)

    def copy(self, host: HostCopy, slot: int, done: Copied) -> None:
        assert isinstance(host, FakeCopy)
        self.contents[slot] = None
        self.under_way.append((host.adapter_id, slot, done))
        if self.instant:
            self.finish()

    def finish(self, count: int = 1 << 30) -> None:
        """Ends the first `count` copies."""
        for _ in range(min(count, len(self.under_way))):
            adapter_id, slot, done = self.under_way.pop(0)
            self.contents[slot] = adapter_id
            done(None)
