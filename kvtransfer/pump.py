"""The body of a connector's thread: posts writes, polls them, calls back.

Why a thread of its own: a write through shared memory is a copy within the post, and a write
through a socket moves only while somebody polls. Neither may hold up an engine step, and an engine
step must not hold up either of them.

Why no fixed polling period: the thread sleeps a tenth of the time since something last happened,
within `ConnectorLimits`, and not at all while a write is young, as one between GPUs of a host ends
within microseconds. A wait of t is noticed after 1.1 t at most, an idle worker wakes 50 times a
second, and whatever the owner asks for wakes it at once.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from baton.kvtransfer.connector import Notice, PeerInfo, PeerKey
from baton.kvtransfer.wire import BlockIds, ConnectorLimits, Transfer, Wire
from baton.protos.errors import PeerLostError, TransferError

_MAX_LOST_KEYS: Final = 4096
_SPIN_S: Final = 200e-6
_SHORTEST_SLEEP_S: Final = 20e-6
_COMMANDS_PER_ROUND: Final = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Push:
    """What `Connector.push` was given, checked."""

    key: PeerKey
    local_blocks: BlockIds
    remote_blocks: BlockIds
    notice: Notice
    done: Callable[[TransferError | None], None]


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a peer; the result comes when it is warm or failed."""

    peer: PeerInfo
    result: Future[None]


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Lose a peer; the result comes when its pushes cannot be posted any more."""

    key: PeerKey
    result: Future[None]


@dataclass(frozen=True, slots=True)
class Wake:
    """Only ends a sleep."""


@dataclass(slots=True)
class _Peer:
    """An open peer: opening while `warm_up` is there, then connected; leaving once it is lost."""

    info: PeerInfo
    deadline_s: float
    warm_up: Transfer | None
    waiters: list[Future[None]]
    flights: list[tuple[Push, Transfer]] = field(default_factory=list)


@dataclass(slots=True)
class Counts:
    """See `ConnectorStatistics`; the pump is the only writer."""

    num_done: int = 0
    num_failed: int = 0
    num_bytes: int = 0
    num_notices: int = 0
    num_bad_notices: int = 0
    num_callback_errors: int = 0


Command = Push | Connect | Disconnect | Wake


class Pump:
    """The thread's state. Others may use `commands`, write `num_expected`, and read the rest."""

    def __init__(
        self,
        wire: Wire,
        on_notice: Callable[[PeerKey, Notice], None],
        limits: ConnectorLimits,
    ) -> None:
        self.commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.num_expected = 0
        self.counts = Counts()
        self._wire = wire
        self._info = wire.info
        self._on_notice = on_notice
        self._limits = limits
        self._peers: dict[PeerKey, _Peer] = {}
        self._leaving: dict[PeerKey, _Peer] = {}
        self._lost: dict[PeerKey, str] = {}
        self._last_event_s = time.monotonic()

    @property
    def num_peers(self) -> int:
        return len(self._peers)

    def num_blocks_of(self, key: PeerKey) -> int | None:
        """Blocks in the pool of an open peer; None for any other. From any thread."""
        peer = self._peers.get(key)
        return None if peer is None else peer.info.num_blocks

    def run(self, stopped: Callable[[], bool]) -> None:
        """Works until `stopped()`; `wind_down` must follow, also after an exception."""
        self._wire.enter_thread()
        while not stopped():
            self._take_commands(self._sleep_s())
            self._progress()

    def _sleep_s(self) -> float:
        waited_s = time.monotonic() - self._last_event_s
        peers = (*self._peers.values(), *self._leaving.values())
        writing = any(peer.warm_up or peer.flights for peer in peers)
        if writing and waited_s < _SPIN_S:
            return 0.0
        eager = writing or self.num_expected > 0
        limit_s = self._limits.eager_poll_s if eager else self._limits.idle_poll_s
        return min(limit_s, max(_SHORTEST_SLEEP_S, 0.1 * waited_s))

    def _take_commands(self, sleep_s: float) -> None:
        """Sleeps until a command or the end of `sleep_s`; some commands, then polls have a turn."""
        try:
            command = self.commands.get(timeout=sleep_s)
            for _ in range(_COMMANDS_PER_ROUND):
                self._last_event_s = time.monotonic()
                self._take(command)
                command = self.commands.get_nowait()
            self._take(command)
        except queue.Empty:
            return

    def _take(self, command: Command) -> None:
        match command:
            case Push():
                self._post(command)
            case Connect():
                self._open(command)
            case Disconnect():
                self._lose(command.key, f"{command.key} was disconnected")
                command.result.set_result(None)

    def _post(self, push: Push) -> None:
        peer = self._peers.get(push.key)
        if peer is None or peer.warm_up is not None:
            reason = self._lost.get(push.key, f"{push.key} is not connected")
            self._end(push, PeerLostError(reason))
            return
        try:
            transfer = self._wire.write(
                push.key, push.local_blocks, push.remote_blocks, push.notice.to_bytes()
            )
        except TransferError as error:
            if isinstance(error, PeerLostError):
                self._lose(push.key, error.message)
            self._end(push, error)
            return
        peer.flights.append((push, transfer))
        # Through shared memory it is written by now: no need to wait for the next round.
        self._poll_flights(peer)

    def _open(self, command: Connect) -> None:
        key = command.peer.key
        if key in self._lost:
            command.result.set_exception(PeerLostError(self._lost[key]))
            return
        peer = self._peers.get(key)
        if peer is None:
            deadline_s = time.monotonic() + self._limits.connect_timeout_s
            try:
                warm_up = self._wire.open(command.peer)
            except TransferError as error:
                command.result.set_exception(error)
                return
            self._peers[key] = _Peer(command.peer, deadline_s, warm_up, [command.result])
        elif peer.warm_up is None:
            command.result.set_result(None)
        else:
            peer.waiters.append(command.result)

    def _progress(self) -> None:
        for peer in list(self._peers.values()):
            if peer.warm_up is not None:
                self._poll_warm_up(peer, peer.warm_up)
            self._poll_flights(peer)
        for peer in list(self._leaving.values()):
            self._poll_flights(peer)
            self._drop_when_quiet(peer)
        self._deliver_notices()

    def _poll_warm_up(self, peer: _Peer, warm_up: Transfer) -> None:
        try:
            if warm_up.poll():
                warm_up.release()
                peer.warm_up = None
                for waiter in peer.waiters:
                    waiter.set_result(None)
            elif time.monotonic() > peer.deadline_s:
                timeout_s = self._limits.connect_timeout_s
                self._lose(peer.info.key, f"{peer.info.key} did not answer within {timeout_s} s")
        except TransferError as error:
            self._lose(peer.info.key, error.message)

    def _poll_flights(self, peer: _Peer) -> None:
        """Ends the pushes that are written or failed. May lose the peer."""
        still: list[tuple[Push, Transfer]] = []
        ended: list[tuple[Push, TransferError | None]] = []
        for push, transfer in peer.flights:
            try:
                if not transfer.poll():
                    still.append((push, transfer))
                    continue
                ended.append((push, None))
            except TransferError as error:
                ended.append((push, error))
            transfer.release()
        peer.flights = still
        for push, failure in ended:
            if isinstance(failure, PeerLostError):
                self._lose(push.key, failure.message)
            reason = self._lost.get(push.key)
            self._end(push, failure if reason is None else PeerLostError(reason))

    def _lose(self, key: PeerKey, reason: str) -> None:
        """From now on `key` is gone for good; what is under way to it still has to end."""
        if key in self._lost:
            return
        self._lost[key] = reason
        if len(self._lost) > _MAX_LOST_KEYS:
            del self._lost[next(iter(self._lost))]
        peer = self._peers.pop(key, None)
        if peer is None:
            return
        if peer.warm_up is not None:
            for waiter in peer.waiters:
                waiter.set_exception(PeerLostError(reason))
        peer.deadline_s = time.monotonic() + self._limits.drain_timeout_s
        self._leaving[key] = peer
        self._drop_when_quiet(peer)

    def _drop_when_quiet(self, peer: _Peer) -> None:
        """Ends the peer in the wire, at the deadline together with what is still under way."""
        key = peer.info.key
        if peer.flights and time.monotonic() < peer.deadline_s:
            return
        if self._leaving.pop(key, None) is None:
            return
        self._wire.drop(key)
        if peer.warm_up is not None:
            peer.warm_up.release()
        for push, transfer in peer.flights:
            transfer.release()
            self._end(push, PeerLostError(self._lost.get(key, f"{key} was disconnected")))
        peer.flights = []

    def _end(self, push: Push, error: TransferError | None) -> None:
        self._last_event_s = time.monotonic()
        counts = self.counts
        if error is None:
            counts.num_done += 1
            counts.num_bytes += len(push.local_blocks) * self._info.layout.block_bytes
        else:
            counts.num_failed += 1
        self._call_back(push.done, error)

    def _deliver_notices(self) -> None:
        for sender, data in self._wire.received():
            self._last_event_s = time.monotonic()
            try:
                key, notice = PeerKey.parse(sender), Notice.from_bytes(data)
            except TransferError as error:
                logger.warning("unreadable notice from %r: %s", sender, error)
                self.counts.num_bad_notices += 1
                continue
            if key in self._lost:
                self.counts.num_bad_notices += 1
                continue
            self.counts.num_notices += 1
            self._call_back(self._on_notice, key, notice)

    def _call_back(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            # The owner's bug must not stop the transfers of its other requests.
            logger.exception("a callback of the KV connector of %s fails", self._info.key)
            self.counts.num_callback_errors += 1

    def wind_down(self, reason: str) -> None:
        """Fails what waits, lets what is under way end, and closes the wire."""
        self._fail_queued(reason)
        for key in list(self._peers):
            self._lose(key, reason)
        while self._leaving:
            for peer in list(self._leaving.values()):
                self._poll_flights(peer)
                self._drop_when_quiet(peer)
            time.sleep(self._limits.eager_poll_s)
        self._wire.close()

    def _fail_queued(self, reason: str) -> None:
        try:
            while True:
                command = self.commands.get_nowait()
                if isinstance(command, Push):
                    self._end(command, TransferError(reason))
                elif isinstance(command, Connect):
                    command.result.set_exception(TransferError(reason))
                elif isinstance(command, Disconnect):
                    command.result.set_result(None)
        except queue.Empty:
            return
