"""Adapters in CPU memory: what was loaded, who uses it, and when it may go."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass

from baton.engine.adapters.memory import AdapterMemory, HostCopy
from baton.protos.adapters import AdapterRef
from baton.protos.clock import Clock
from baton.protos.errors import AdapterError, AdapterNotFoundError


@dataclass(slots=True, kw_only=True)
class Entry:
    """A loaded adapter. num_requests: those in the engine that name it; num_served: since loaded.

    leaving: unloaded, but not yet by its last request.
    """

    ref: AdapterRef
    host: HostCopy
    num_requests: int = 0
    num_served: int = 0
    leaving: bool = False


class AdapterStore:
    """At most `max_adapters` entries, by id. Every method may be called from any thread."""

    def __init__(self, memory: AdapterMemory | None, max_adapters: int, clock: Clock) -> None:
        """memory None: adapters are off."""
        self._memory = memory
        self._max_adapters = max_adapters
        self._clock = clock
        self._lock = threading.Lock()
        # Guarded by the lock, as are the figures.
        self._entries: dict[str, Entry] = {}
        self._loading: dict[str, Future[None]] = {}
        self.num_read = 0
        self.read_s = 0.0

    def load(self, ref: AdapterRef) -> None:
        """Returns when it is in CPU memory and checked; at once if it already is.

        Raises AdapterError for a folder that does not fit or is not what `ref` names, and where
        `max_adapters` are loaded.
        """
        if self._memory is None:
            raise AdapterError(
                "max_loras is 0, which turns adapters off; start with a larger one",
                param="max_loras",
            )
        mine, future = self._claim(ref)
        if not mine:
            future.result()
            return
        started_s = self._clock.now_s()
        try:
            host = self._memory.read(ref)
        except BaseException as error:
            with self._lock:
                del self._loading[ref.adapter_id]
            future.set_exception(error)
            raise
        with self._lock:
            del self._loading[ref.adapter_id]
            self._entries[ref.adapter_id] = Entry(ref=ref, host=host)
            self.num_read += 1
            self.read_s += self._clock.now_s() - started_s
        future.set_result(None)

    def unload(self, adapter_id: str) -> None:
        """From now on requests for it are refused; its memory goes with the last that it has.

        Raises AdapterNotFoundError.
        """
        with self._lock:
            entry = self._entries.get(adapter_id)
            if entry is None or entry.leaving:
                raise _not_found(adapter_id)
            entry.leaving = True
            gone = self._drop_if_over(entry)
        self._forget(gone)

    def acquire(self, adapter_id: str) -> None:
        """A request names it: it stays until release. AdapterNotFoundError."""
        with self._lock:
            entry = self._entries.get(adapter_id)
            if entry is None or entry.leaving:
                raise _not_found(adapter_id)
            entry.num_requests += 1
            entry.num_served += 1

    def release(self, adapter_id: str) -> None:
        """Ends one acquire."""
        with self._lock:
            entry = self._entries[adapter_id]
            entry.num_requests -= 1
            gone = self._drop_if_over(entry)
        self._forget(gone)

    def host(self, adapter_id: str) -> HostCopy | None:
        """Its copy in CPU memory; None if it is not loaded (any more)."""
        with self._lock:
            entry = self._entries.get(adapter_id)
            return None if entry is None else entry.host

    def entries(self) -> list[Entry]:
        """As they are now, in the order of their loading."""
        with self._lock:
            return list(self._entries.values())

    def _claim(self, ref: AdapterRef) -> tuple[bool, Future[None]]:
        """Whether the caller is to read it, and the future of who does."""
        with self._lock:
            future: Future[None] = Future()
            entry = self._entries.get(ref.adapter_id)
            if entry is not None:
                entry.leaving = False
                entry.ref = ref
                future.set_result(None)
                return False, future
            if ref.adapter_id in self._loading:
                return False, self._loading[ref.adapter_id]
            if len(self._entries) + len(self._loading) >= self._max_adapters:
                raise AdapterError(
                    f"max_cpu_loras is {self._max_adapters}, and as many adapters are loaded;"
                    f" unload one before {ref.name}, or start with a larger one",
                    param="max_cpu_loras",
                    code="too_many_adapters",
                )
            self._loading[ref.adapter_id] = future
            return True, future

    def _drop_if_over(self, entry: Entry) -> HostCopy | None:
        """With the lock held."""
        if not entry.leaving or entry.num_requests:
            return None
        del self._entries[entry.ref.adapter_id]
        return entry.host

    def _forget(self, host: HostCopy | None) -> None:
        if host is not None and self._memory is not None:
            self._memory.forget(host)


def _not_found(adapter_id: str) -> AdapterNotFoundError:
    return AdapterNotFoundError(f"adapter {adapter_id} is not loaded here", param="model")
