"""KV blocks between pools of one process, by copying: `LocalConnector`.

The same contract as between processes, the same thread behind it, and a wire that can be made slow
or cut on purpose. For tests, and for a process that runs both sides.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from baton.kvtransfer.connector import Notice, PeerInfo, PeerKey
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.pool import check_pool, copy_runs
from baton.kvtransfer.wire import ConnectorLimits, Route, RunIds, Transfer
from baton.kvtransfer.wire_connector import WireConnector
from baton.protos.errors import PeerLostError, TransferError

_NO_RUNS: Final = np.empty(0, dtype=np.int32)


class LocalFabric:
    """Joins the `LocalConnector`s that are made with it. A write takes `delay_s` seconds."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self._lock = threading.Lock()
        self._wires: dict[str, LocalWire] = {}

    def cut(self, key: PeerKey) -> None:
        """From now on nobody reaches that incarnation, as if it had died."""
        with self._lock:
            self._wires.pop(key.agent, None)

    def add(self, wire: LocalWire) -> None:
        with self._lock:
            if wire.info.key.agent in self._wires:
                raise TransferError(f"{wire.info.key} is in this fabric already")
            self._wires[wire.info.key.agent] = wire

    def find(self, key: PeerKey) -> LocalWire:
        """Raises PeerLostError if it was cut off, closed, or never there."""
        with self._lock:
            wire = self._wires.get(key.agent)
        if wire is None:
            raise PeerLostError(f"writing to {key}: it is not in this process (any more)")
        return wire


class LocalConnector(WireConnector):
    """Copies blocks of `pool` into pools of the same `fabric`. See `Connector` for the contract.

    Raises ConfigError if `pool` is not `[num_blocks, *layout.block_shape]` and contiguous, and
    TransferError if `key` is in the fabric already.
    """

    def __init__(
        self,
        pool: torch.Tensor,
        layout: KVLayout,
        key: PeerKey,
        *,
        fabric: LocalFabric,
        on_notice: Callable[[PeerKey, Notice], None],
        limits: ConnectorLimits | None = None,
    ) -> None:
        wire = LocalWire(pool, layout, key, fabric)
        super().__init__(wire, on_notice=on_notice, limits=limits)


class LocalWire:
    """See `Wire`."""

    def __init__(
        self, pool: torch.Tensor, layout: KVLayout, key: PeerKey, fabric: LocalFabric
    ) -> None:
        num_blocks = check_pool(pool, layout)
        self.pool = pool
        self.info = PeerInfo(key, b"", layout, pool.data_ptr(), num_blocks, 0)
        self._fabric = fabric
        self._inbox: deque[tuple[str, bytes]] = deque()
        self._routes: dict[PeerKey, Route] = {}
        fabric.add(self)

    def enter_thread(self) -> None:
        """Nothing here belongs to a thread."""

    def open(self, peer: PeerInfo, route: Route) -> Transfer:
        self._routes[peer.key] = route
        return self._transfer(peer.key, _NO_RUNS, _NO_RUNS, None)

    def write(
        self, key: PeerKey, local_runs: RunIds, remote_runs: RunIds, notice: bytes
    ) -> Transfer:
        return self._transfer(key, local_runs, remote_runs, notice)

    def _transfer(
        self, key: PeerKey, local: RunIds, remote: RunIds, notice: bytes | None
    ) -> Transfer:
        self._fabric.find(key)
        route = self._routes[key]

        def finish() -> None:
            peer = self._fabric.find(key)
            if local.size:
                copy_runs(route, local, peer.pool, remote)
            if notice is not None:
                peer.put_notice(self.info.key.agent, notice)

        return _LocalTransfer(finish, time.monotonic() + self._fabric.delay_s)

    def put_notice(self, sender: str, notice: bytes) -> None:
        """From another wire's thread, whose connector's `max_pushes` bounds it."""
        self._inbox.append((sender, notice))

    def drop(self, key: PeerKey) -> None:
        """Transfers to it are released by the connector, and then do nothing."""
        self._routes.pop(key, None)

    def received(self) -> list[tuple[str, bytes]]:
        return [self._inbox.popleft() for _ in range(len(self._inbox))]

    def close(self) -> None:
        self._fabric.cut(self.info.key)


class _LocalTransfer:
    """Does the whole work of a write when it is due, unless it was released before."""

    def __init__(self, finish: Callable[[], None], due_s: float) -> None:
        self._finish: Callable[[], None] | None = finish
        self._due_s = due_s

    def poll(self) -> bool:
        if self._finish is not None and time.monotonic() >= self._due_s:
            self._finish()
            self._finish = None
        return self._finish is None

    def release(self) -> None:
        self._finish = None
