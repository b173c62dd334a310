"""A `Connector` on top of a `Wire`: the side that its owners call, from any thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from baton.kvtransfer.commands import Connect, Disconnect, Wake
from baton.kvtransfer.connector import ConnectorStatistics, Notice, PeerInfo, PeerKey
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.mapping import plan_map
from baton.kvtransfer.pieces import Push
from baton.kvtransfer.pump import Pump
from baton.kvtransfer.wire import ConnectorLimits, RunIds, Wire
from baton.protos.errors import TransferError

logger = logging.getLogger(__name__)


class WireConnector:
    """See `Connector` for the contract. Takes over `wire` and closes it."""

    def __init__(
        self,
        wire: Wire,
        *,
        on_notice: Callable[[PeerKey, Notice], None],
        limits: ConnectorLimits | None = None,
    ) -> None:
        self._info = wire.info
        self._limits = limits or ConnectorLimits()
        self._pump = Pump(wire, on_notice, self._limits)
        self._lock = threading.Lock()  # guards _closed, _num_pushes and the pump's num_expected
        self._closed = False
        self._num_pushes = 0
        self._thread = threading.Thread(
            target=self._run, name=f"kv-{self._info.key.worker_id}", daemon=True
        )
        self._thread.start()

    def local_info(self) -> PeerInfo:
        return self._info

    def connect(self, peer: PeerInfo) -> None:
        plan_map(self._info.layout, peer.layout)
        if peer.key.agent == self._info.key.agent:
            raise TransferError(f"{peer.key} cannot connect to itself")
        result: Future[None] = Future()
        self._submit(Connect(peer, result))
        result.result()

    def disconnect(self, key: PeerKey) -> None:
        result: Future[None] = Future()
        try:
            self._submit(Disconnect(key, result))
        except TransferError:
            return  # closed: every peer is disconnected
        result.result()

    def push(
        self,
        key: PeerKey,
        local_blocks: Sequence[int],
        remote_blocks: Sequence[int],
        notice: Notice,
        done: Callable[[TransferError | None], None],
        *,
        skip_tokens: int = 0,
    ) -> None:
        ours = self._info
        peer = self._pump.peer(key)
        # Not open: whatever it holds, the push fails later with the reason.
        sent = ours.layout if peer is None else peer.kv_map.sent_layout
        _check_cover(ours.layout, sent, len(local_blocks), len(remote_blocks), skip_tokens)
        local = _in_pool("local_blocks", local_blocks, ours.num_blocks)
        remote = _in_pool("remote_blocks", remote_blocks, peer.info.num_blocks if peer else None)
        num_bytes = len(remote) * sent.block_bytes
        self._submit(Push(key, local, remote, notice, done, num_bytes, skip_tokens))

    def expect(self, delta: int) -> None:
        with self._lock:
            if self._pump.num_expected + delta < 0:
                raise TransferError("more hand-overs ended than began")
            self._pump.num_expected += delta
        if delta >= 0:
            self._pump.commands.put(Wake())

    def statistics(self) -> ConnectorStatistics:
        counts = self._pump.counts
        return ConnectorStatistics(
            num_peers=self._pump.num_peers,
            num_pushes=self._num_pushes,
            num_done=counts.num_done,
            num_failed=counts.num_failed,
            num_in_flight=self._num_unfinished,
            num_bytes=counts.num_bytes,
            num_notices=counts.num_notices,
            num_bad_notices=counts.num_bad_notices,
            num_callback_errors=counts.num_callback_errors,
        )

    @property
    def _num_unfinished(self) -> int:
        return self._num_pushes - self._pump.counts.num_done - self._pump.counts.num_failed

    def close(self) -> None:
        if threading.current_thread() is self._thread:
            raise TransferError("a connector cannot be closed from its own callback")
        with self._lock:
            self._closed = True
        self._pump.commands.put(Wake())
        self._thread.join()

    def _submit(self, command: Push | Connect | Disconnect) -> None:
        with self._lock:
            if self._closed:
                raise TransferError(f"the connector of {self._info.key} is closed")
            if isinstance(command, Push):
                if self._num_unfinished >= self._limits.max_pushes:
                    raise TransferError(
                        f"{self._num_unfinished} pushes are unfinished already, the most allowed"
                    )
                self._num_pushes += 1
            # Within the lock: once `_closed` is set, nothing is put any more.
            self._pump.commands.put(command)

    def _run(self) -> None:
        reason = f"the connector of {self._info.key} is closed"
        try:
            self._pump.run(lambda: self._closed)
        except Exception as error:
            logger.exception("the KV connector of %s fails", self._info.key)
            reason = f"the connector of {self._info.key} failed: {error}"
            with self._lock:
                self._closed = True
        self._pump.wind_down(reason)


def _check_cover(
    ours: KVLayout, theirs: KVLayout, num_local: int, num_remote: int, skip_tokens: int
) -> None:
    """TransferError unless the local blocks reach into the last remote block, and not beyond."""
    if ours.block_size == theirs.block_size and not skip_tokens:
        if not num_local or num_local != num_remote:
            raise TransferError(
                f"a push needs as many local as remote blocks, at least one, not {num_local} and"
                f" {num_remote}"
            )
        return
    tokens = num_local * ours.block_size - skip_tokens
    first_unused = num_remote * theirs.block_size + ours.block_size
    if not 0 <= skip_tokens < ours.block_size or not (
        (num_remote - 1) * theirs.block_size < tokens < first_unused
    ):
        raise TransferError(
            f"{num_local} blocks of {ours.block_size} tokens, the first {skip_tokens} skipped, are"
            f" not {num_remote} blocks of {theirs.block_size}"
        )


def _in_pool(name: str, blocks: Sequence[int], num_blocks: int | None) -> RunIds:
    """`blocks` as an array. With None, of a peer that is not open, the push fails later anyhow."""
    found = np.asarray(blocks, dtype=np.int64)
    low, high = int(found.min()), int(found.max())
    if num_blocks is not None and (low < 0 or high >= num_blocks):
        raise TransferError(
            f"{name} goes from {low} to {high}, but that pool has blocks 0 to {num_blocks - 1}",
            param=name,
        )
    return found.astype(np.int32)
