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
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from baton.kvtransfer.commands import Command, Connect, Counts, Disconnect
from baton.kvtransfer.connector import Notice, PeerInfo, PeerKey
from baton.kvtransfer.mailbox import Mailbox
from baton.kvtransfer.mapping import Grid, KVMap, plan_map
from baton.kvtransfer.pieces import Flight, Peer, Piece, Push, cut, runs_of, whole
from baton.kvtransfer.staging import Staging
from baton.kvtransfer.wire import ConnectorLimits, Route, Transfer, Wire
from baton.protos.errors import PeerLostError, TransferError

_MAX_LOST_KEYS: Final = 4096
_SPIN_S: Final = 200e-6
# A GiB takes a millisecond between processes on one GPU: a sleep would be a good part of it.
_SPIN_ON_GPU_S: Final = 2e-3
_SHORTEST_SLEEP_S: Final = 20e-6
_COMMANDS_PER_ROUND: Final = 16

logger = logging.getLogger(__name__)


class Pump:
    """The thread's state. Others may use `commands`, write `num_expected`, and read the rest."""

    def __init__(
        self,
        wire: Wire,
        on_notice: Callable[[PeerKey, Notice], None],
        limits: ConnectorLimits,
    ) -> None:
        self.commands: Mailbox[Command] = Mailbox()
        self.num_expected = 0
        self.counts = Counts()
        self._wire = wire
        self._info = wire.info
        self._on_notice = on_notice
        self._limits = limits
        self._spin_s = _SPIN_ON_GPU_S if wire.pool.is_cuda else _SPIN_S
        self._peers: dict[PeerKey, Peer] = {}
        self._leaving: dict[PeerKey, Peer] = {}
        self._lost: dict[PeerKey, str] = {}
        # Agents whose latest connection is lost: what they still say belongs to nobody.
        self._silenced: dict[str, None] = {}
        self._staging: Staging | None = None
        self._last_event_s = time.monotonic()

    @property
    def num_peers(self) -> int:
        return len(self._peers)

    def peer(self, key: PeerKey) -> Peer | None:
        """An open peer, to be read only; None for any other. From any thread."""
        return self._peers.get(key)

    def run(self, stopped: Callable[[], bool]) -> None:
        """Works until `stopped()`; `wind_down` must follow, also after an exception."""
        self._wire.enter_thread()
        while not stopped():
            self._take_commands(self._sleep_s())
            self._progress()

    def _sleep_s(self) -> float:
        waited_s = time.monotonic() - self._last_event_s
        peers = (*self._peers.values(), *self._leaving.values())
        writing = any(peer.warm_up or peer.flights or peer.pending for peer in peers)
        if writing and waited_s < self._spin_s:
            return 0.0
        eager = writing or self.num_expected > 0
        limit_s = self._limits.eager_poll_s if eager else self._limits.idle_poll_s
        return min(limit_s, max(_SHORTEST_SLEEP_S, 0.1 * waited_s))

    def _take_commands(self, sleep_s: float) -> None:
        """Sleeps until a command or the end of `sleep_s`; some commands, then polls have a turn."""
        command = self.commands.take(sleep_s)
        for _ in range(_COMMANDS_PER_ROUND):
            if command is None:
                return
            self._last_event_s = time.monotonic()
            self._take(command)
            command = self.commands.take()
        if command is not None:
            self._take(command)

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
        """It goes out when all commands of this round are known."""
        peer = self._peers.get(push.key)
        if peer is None or peer.warm_up is not None:
            reason = self._lost.get(push.key, f"{push.key} is not connected")
            self._end(push, PeerLostError(reason))
            return
        if self._staging is None or peer.kv_map.alike:
            peer.pending.append(whole(push))
        else:
            most = self._staging.blocks_per_chamber(peer.kv_map)
            peer.pending.extend(cut(push, peer.kv_map, most))

    def _post_pending(self, peer: Peer) -> None:
        """Posts what waits, as far as there is room to convert it.

        One after the other, before anybody hears of the first one's end: through shared memory a
        post is a copy, which leaves nothing of the interpreter in the processor's caches, so that
        what is done between two of them takes several times as long as it does before or after.
        """
        while peer.pending:
            chamber = None
            if not peer.kv_map.alike:
                chamber = self._take_chamber()
                if chamber is None:
                    break
            piece = peer.pending.popleft()
            try:
                transfer = self._write(peer, piece, chamber)
            except TransferError as error:
                self._end_piece(piece, chamber, error)
                if isinstance(error, PeerLostError):
                    self._lose(peer.info.key, error.message)
                    return
                continue
            peer.flights.append(Flight(piece, transfer, chamber, time.monotonic()))
        # Through shared memory it is written by now: no need to wait for the next round.
        self._poll_flights(peer)

    def _take_chamber(self) -> int | None:
        return None if self._staging is None else self._staging.take()

    def _write(self, peer: Peer, piece: Piece, chamber: int | None) -> Transfer:
        kv_map, local = peer.kv_map, piece.local_blocks
        num_blocks = len(piece.remote_blocks)
        if self._staging is not None and chamber is not None:
            blocks = torch.from_numpy(local.astype(np.int64))
            self._staging.fill(chamber, kv_map, blocks, piece.skip_tokens, num_blocks)
            first = chamber * self._staging.blocks_per_chamber(kv_map)
            local = np.arange(first, first + num_blocks, dtype=np.int32)
        runs = kv_map.runs_per_block if chamber is not None else 1
        return self._wire.write(
            peer.info.key,
            runs_of(local, runs),
            runs_of(piece.remote_blocks, runs),
            piece.notice.to_bytes(),
        )

    def _open(self, command: Connect) -> None:
        key = command.peer.key
        try:
            known = self._known(key)
        except PeerLostError as error:
            command.result.set_exception(error)
            return
        if known is not None and known.warm_up is None:
            command.result.set_result(None)
            return
        if known is not None:
            known.waiters.append(command.result)
            return
        try:
            kv_map = plan_map(self._info.layout, command.peer.layout)
            warm_up = self._wire.open(command.peer, self._route(kv_map, command.peer))
        except TransferError as error:
            command.result.set_exception(error)
            return
        deadline_s = time.monotonic() + self._limits.connect_timeout_s
        self._silenced.pop(key.agent, None)
        self._peers[key] = Peer(
            info=command.peer,
            kv_map=kv_map,
            deadline_s=deadline_s,
            warm_up=warm_up,
            waiters=[command.result],
        )

    def _known(self, key: PeerKey) -> Peer | None:
        """The open peer of that key, after ending older sessions. PeerLostError if it is over."""
        if key in self._lost:
            raise PeerLostError(self._lost[key])
        for other in [k for k in (*self._peers, *self._leaving) if k.agent == key.agent]:
            if other.session > key.session:
                raise PeerLostError(f"{key} was replaced by {other}")
            if other != key:
                self._lose(other, f"{other} was replaced by {key}")
                if (old := self._leaving.pop(other, None)) is not None:
                    self._drop(old)
        return self._peers.get(key)

    def _route(self, kv_map: KVMap, peer: PeerInfo) -> Route:
        """Raises LayoutMismatchError when a block does not fit the staging buffer."""
        remote = kv_map.remote_grid(peer.num_blocks)
        if kv_map.alike:
            size = self._info.layout.block_bytes
            blocks = Grid(offset=0, run_bytes=size, stride=size, count=self._info.num_blocks)
            return Route(source=self._wire.pool, local=(blocks,), remote=remote)
        if self._staging is None:
            self._staging = Staging(self._limits.staging_bytes, self._wire.pool)
        local = self._staging.grids(kv_map)
        return Route(source=self._staging.buffer, local=local, remote=remote)

    def _progress(self) -> None:
        for peer in list(self._peers.values()):
            if peer.warm_up is not None:
                self._poll_warm_up(peer, peer.warm_up)
            self._poll_flights(peer)
            if peer.pending:
                self._post_pending(peer)
            self._lose_if_half_open(peer)
        for peer in list(self._leaving.values()):
            self._poll_flights(peer)
            self._drop_when_quiet(peer)
        self._deliver_notices()

    def _poll_warm_up(self, peer: Peer, warm_up: Transfer) -> None:
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

    def _poll_flights(self, peer: Peer) -> None:
        """Ends the pieces that are written or failed. May lose the peer."""
        still: list[Flight] = []
        ended: list[tuple[Flight, TransferError | None]] = []
        for flight in peer.flights:
            try:
                if not flight.transfer.poll():
                    still.append(flight)
                    continue
                ended.append((flight, None))
            except TransferError as error:
                ended.append((flight, error))
            flight.transfer.release()
        peer.flights = still
        for flight, failure in ended:
            key = peer.info.key
            if isinstance(failure, PeerLostError):
                self._lose(key, failure.message)
            # What a lost peer has taken in full is still not known to have been noticed.
            reason = self._lost.get(key)
            self._end_piece(
                flight.piece, flight.chamber, PeerLostError(reason) if reason else failure
            )

    def _lose_if_half_open(self, peer: Peer) -> None:
        """A write that does not end costs its peer, which is dropped after `drain_timeout_s`."""
        limit_s = self._limits.write_timeout_s
        if peer.flights and time.monotonic() - peer.flights[0].posted_s > limit_s:
            key = peer.info.key
            self._lose(key, f"a write to {key} did not end within {limit_s:g} s")

    def _end_piece(self, piece: Piece, chamber: int | None, error: TransferError | None) -> None:
        if chamber is not None and self._staging is not None:
            self._staging.give_back(chamber)
        job = piece.job
        job.error = job.error or error
        job.num_left -= 1
        if not job.num_left:
            self._end(job.push, job.error)

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
        self._silenced[key.agent] = None
        if len(self._silenced) > _MAX_LOST_KEYS:
            del self._silenced[next(iter(self._silenced))]
        if peer.warm_up is not None:
            for waiter in peer.waiters:
                waiter.set_exception(PeerLostError(reason))
        peer.deadline_s = time.monotonic() + self._limits.drain_timeout_s
        self._leaving[key] = peer
        while peer.pending:
            self._end_piece(peer.pending.popleft(), None, PeerLostError(reason))
        self._drop_when_quiet(peer)

    def _drop_when_quiet(self, peer: Peer) -> None:
        """Ends the peer in the wire, at the deadline together with what is still under way."""
        if peer.flights and time.monotonic() < peer.deadline_s:
            return
        if self._leaving.pop(peer.info.key, None) is not None:
            self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        key = peer.info.key
        self._wire.drop(key)
        if peer.warm_up is not None:
            peer.warm_up.release()
        flights, peer.flights = peer.flights, []
        for flight in flights:
            flight.transfer.release()
            error = PeerLostError(self._lost.get(key, f"{key} was disconnected"))
            self._end_piece(flight.piece, flight.chamber, error)

    def _end(self, push: Push, error: TransferError | None) -> None:
        self._last_event_s = time.monotonic()
        counts = self.counts
        if error is None:
            counts.num_done += 1
            counts.num_bytes += push.num_bytes
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
            if sender in self._silenced:
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
        while (command := self.commands.take()) is not None:
            if isinstance(command, Push):
                self._end(command, TransferError(reason))
            elif isinstance(command, Connect):
                command.result.set_exception(TransferError(reason))
            elif isinstance(command, Disconnect):
                command.result.set_result(None)
