"""Adapters of a model that several ranks share: each rank reads and keeps its part.

What fills or frees something travels with the steps, in their order, so that all ranks agree on
what is in a slot when a step uses it; only reading, which takes long, goes beside them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from baton.engine.adapters.memory import Copied, HostCopy
from baton.engine.adapters.pool import AdapterPool, HostAdapter
from baton.engine.parallel.connectors import RemoteRank
from baton.engine.parallel.messages import COPY, FORGET, write_command
from baton.protos.adapters import AdapterRef
from baton.protos.errors import AdapterError, BatonError, TransferError


@dataclass(frozen=True, slots=True)
class SharedAdapter:
    """Rank 0's part, the other ranks' name for theirs, and all parts' bytes."""

    own: HostAdapter
    key: int
    num_bytes: int


class SharedAdapters:
    """Rank 0's AdapterMemory. send: a message among the steps, from the engine's thread."""

    def __init__(
        self, pool: AdapterPool, ranks: Sequence[RemoteRank], send: Callable[[bytes], None]
    ) -> None:
        self._pool = pool
        self._ranks = ranks
        self._send = send
        self._keys = itertools.count()
        self._forgotten: deque[int] = deque()

    def read(self, ref: AdapterRef) -> SharedAdapter:
        """Every rank reads it, or none keeps it. Raises AdapterError."""
        own, key = self._pool.read(ref), next(self._keys)
        said = {"key": key, "ref": asdict(ref)}
        with ThreadPoolExecutor(len(self._ranks), "adapters") as threads:
            answers = [threads.submit(rank.call, "read_adapter", **said) for rank in self._ranks]
        try:
            for answer in answers:
                answer.result()
        except TransferError as error:
            self._forgotten.append(key)
            raise AdapterError(
                f"{ref.path}: another rank cannot read it: {error.message}", param="path"
            ) from error
        return SharedAdapter(own, key, own.num_bytes * (1 + len(self._ranks)))

    def forget(self, host: HostCopy) -> None:
        """The other ranks hear of it with the next step: what came before may still need it."""
        self._forgotten.append(_checked(host).key)

    def copy(self, host: HostCopy, slot: int, done: Copied) -> None:
        shared = _checked(host)
        self._send(write_command(COPY, shared.key, slot))
        self._pool.copy(shared.own, slot, done)

    def tell_forgotten(self) -> None:
        """On the engine's thread."""
        with contextlib.suppress(IndexError):
            while True:
                self._send(write_command(FORGET, self._forgotten.popleft(), 0))


class RankAdapters:
    """The side of a rank other than 0."""

    def __init__(self, pool: AdapterPool) -> None:
        self._pool = pool
        self._hosts: dict[int, HostAdapter] = {}

    def read(self, key: int, ref: dict[str, Any]) -> None:
        """From any thread. Raises AdapterError."""
        self._hosts[key] = self._pool.read(AdapterRef(**ref))

    def do(self, command: int, key: int, slot: int) -> None:
        """What rank 0 wrote among the steps; a step that needs a copy waits for it."""
        if command == COPY:
            self._pool.copy(self._hosts[key], slot, lambda _: None)
        else:
            # It may be unknown: not every rank could read it.
            self._hosts.pop(key, None)


def _checked(host: HostCopy) -> SharedAdapter:
    if not isinstance(host, SharedAdapter):
        raise BatonError(f"{host!r} was not read by these ranks")
    return host
