"""One direction between two workers over a channel: the ends, a thread each.

A channel needs both sides to take part in every transfer, so a socket beside it says what
comes next. The receiver writes into its pool only while that socket stands, and confirms each
write after the last byte is in place.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from baton.kvtransfer.channel import Channel, Channels
from baton.kvtransfer.communicator import CHUNK_BYTES, CONNECT_TIMEOUT_S, TRANSFER_TIMEOUT_S
from baton.kvtransfer.connector import PeerKey
from baton.kvtransfer.frames import (
    Greeting,
    WriteFrame,
    is_closed,
    read_ack,
    read_write,
    send_ack,
    send_greeting,
    send_write,
)
from baton.kvtransfer.mailbox import Mailbox
from baton.kvtransfer.pool import runs_view, take_rows
from baton.kvtransfer.wire import Route, RunIds
from baton.protos.errors import PeerLostError, TransferError

# How long a link without a write keeps its channel.
IDLE_S: Final = 60.0
# How long an incoming link may be silent: longer than its sender would keep it.
_SILENCE_S: Final = 2 * IDLE_S + TRANSFER_TIMEOUT_S
_GOODBYE_S: Final = 0.5
# Between looks whether the receiver of a write under way is still there.
_LOOK_S: Final = 0.01
NO_RUNS: Final = np.empty(0, dtype=np.int32)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a worker takes links, and the token that shows that it let the caller know."""

    host: str
    port: int
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Who writes, from which address, over what."""

    agent: str
    host: str
    channels: Channels


@dataclass(slots=True, eq=False)
class LinkWrite:
    """One write on its way. See `Transfer`."""

    link: OutgoingLink
    local_runs: RunIds
    frame: WriteFrame
    error: TransferError | None = None
    released: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)

    def end(self, error: TransferError | None) -> None:
        self.error = error
        self._ended.set()

    def poll(self) -> bool:
        if not self._ended.is_set():
            self.link.check()
            return False
        if self.error is not None:
            raise self.error
        return True

    def release(self) -> None:
        """Not begun: it never will be. What is under way ends with its link."""
        self.released = True


class OutgoingLink:
    """The sender's end. It makes the channel for its first write, drops it after `idle_s`
    without one, and makes it anew for the next.
    """

    def __init__(
        self,
        key: PeerKey,
        to: Endpoint,
        sender: Sender,
        route: Route,
        *,
        idle_s: float,
    ) -> None:
        self._key = key
        self._to = to
        self._route = route
        self._idle_s = idle_s
        remote = route.remote
        self._greeting = {
            "agent": sender.agent,
            "token": to.token,
            "host": sender.host,
            "offset": remote.offset,
            "run_bytes": remote.run_bytes,
            "stride": remote.stride,
            "count": remote.count,
        }
        self._channels = sender.channels
        self._writes: Mailbox[LinkWrite] = Mailbox()
        self._closed = False
        # Once set, no write is carried out any more.
        self._failure: TransferError | None = None
        # Known from outside the thread, which may still wait within the channel.
        self._lost: PeerLostError | None = None
        self._next_look_s = 0.0
        self._connection: socket.socket | None = None
        self._channel: Channel | None = None
        self._thread = threading.Thread(target=self._run, name=f"kv-to-{key.agent}", daemon=True)
        self._thread.start()

    @property
    def is_connected(self) -> bool:
        """Whether there is a channel now."""
        return self._channel is not None

    def write(self, local_runs: RunIds, remote_runs: RunIds, notice: bytes) -> LinkWrite:
        """Queues it behind the others of this link."""
        write = LinkWrite(self, local_runs, WriteFrame(remote_runs, notice))
        self._writes.put(write)
        if self._failure is not None:
            write.end(self._failure)
        return write

    def check(self) -> None:
        """PeerLostError once the receiver has ended the link or its process is gone.

        For whoever waits for a write. The link's thread itself may not notice for a while: gloo
        does not wake a send whose peer dies within the message, but lets it time out, and nothing
        wakes who waits for the other end of a channel that is being made.
        """
        now_s = time.monotonic()
        if self._lost is None and now_s >= self._next_look_s:
            self._next_look_s = now_s + _LOOK_S
            connection = self._connection
            # If the thread has let go of it meanwhile, it was this side that ended it.
            if connection and is_closed(connection) and connection is self._connection:
                self._lost = PeerLostError(f"writing to {self._key}: the receiver ended the link")
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """Ends the link. Returns when the receiver will write no more, or does not answer."""
        self._closed = True
        self.write(NO_RUNS, NO_RUNS, b"")  # wakes it
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        if self._lost is None:
            self._thread.join(_GOODBYE_S)

    def _run(self) -> None:
        error: TransferError | None = None
        last_s = time.monotonic()
        while not self._closed and error is None:
            write = self._writes.take(self._idle_s)
            if write is None:
                if self.is_connected and time.monotonic() - last_s >= self._idle_s:
                    self._disconnect()
                continue
            error = self._carry_out(write)
            last_s = time.monotonic()
        self._failure = error or PeerLostError(f"the link to {self._key} is closed")
        self._disconnect()
        while (late := self._writes.take()) is not None:
            late.end(self._failure)

    def _carry_out(self, write: LinkWrite) -> TransferError | None:
        if write.released or self._closed:
            write.end(PeerLostError(f"the link to {self._key} is closed"))
            return None
        try:
            self._send(write)
        except (OSError, RuntimeError, TransferError) as error:
            failure = PeerLostError(f"writing to {self._key}: the link to it is gone ({error})")
            write.end(failure)
            return failure
        write.end(None)
        return None

    def _send(self, write: LinkWrite) -> None:
        connection, channel = self._connect()
        send_write(connection, write.frame)
        if write.local_runs.size:
            channel.send(self._chunks(write.local_runs))
        read_ack(connection)

    def _connect(self) -> tuple[socket.socket, Channel]:
        if self._connection is not None and self._channel is not None:
            return self._connection, self._channel
        device = self._route.source.device
        offer = self._channels.offer()
        connection = socket.create_connection((self._to.host, self._to.port), CONNECT_TIMEOUT_S)
        self._connection = connection
        connection.settimeout(TRANSFER_TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        send_greeting(connection, Greeting(**self._greeting, rendezvous=offer.rendezvous))  # type: ignore[arg-type]
        read_ack(connection)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._channel = offer.open()
        return connection, self._channel

    def _disconnect(self) -> None:
        """Drops the channel, and waits a moment for the receiver to let go."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(_GOODBYE_S)
                while connection.recv(64):
                    pass
            connection.close()
        self._channel = None

    def _chunks(self, runs: RunIds) -> Iterator[torch.Tensor]:
        """The bytes of `runs`, in chunks that the receiver cuts alike."""
        route = self._route
        per_grid = route.local[0].count
        for start, end in chunk_bounds(len(runs), route.remote.run_bytes):
            part = runs[start:end]
            view = runs_view(route.source, route.local[int(part[0]) // per_grid])
            yield take_rows(view, part % per_grid)


class IncomingLink:
    """The receiver's end: fills the pool, then tells the notice, then the sender. One thread."""

    def __init__(
        self,
        connection: socket.socket,
        greeting: Greeting,
        pool: torch.Tensor,
        channels: Channels,
        deliver: Callable[[str, bytes], None],
    ) -> None:
        self._connection = connection
        self._channels = channels
        self._greeting = greeting
        self._pool = pool
        self._deliver = deliver

    def run(self) -> None:
        """Until the sender closes the link. TransferError, OSError, RuntimeError if it breaks."""
        greeting, device = self._greeting, self._pool.device
        view = self._view()
        send_ack(self._connection)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        channel = self._channels.accept(greeting)
        self._connection.settimeout(_SILENCE_S)
        while (frame := read_write(self._connection)) is not None:
            self._take(frame, view, channel)
            if frame.notice:
                self._deliver(greeting.agent, frame.notice)
            send_ack(self._connection)

    def _view(self) -> torch.Tensor:
        grid = self._greeting.grid
        end = grid.offset + (grid.count - 1) * grid.stride + grid.run_bytes
        num_bytes = self._pool.numel() * self._pool.element_size()
        sane = grid.offset >= 0 and grid.count > 0 and 0 < grid.run_bytes <= grid.stride
        if not sane or end > num_bytes:
            raise TransferError(f"{self._greeting.agent} asks for runs outside this pool: {grid}")
        return runs_view(self._pool, grid)

    def _take(self, frame: WriteFrame, view: torch.Tensor, channel: Channel) -> None:
        runs = frame.runs
        if not runs.size:
            return
        if int(runs.min()) < 0 or int(runs.max()) >= self._greeting.count:
            raise TransferError(f"{self._greeting.agent} writes to runs outside this pool")
        bounds = list(chunk_bounds(len(runs), self._greeting.run_bytes))
        buffers = (
            torch.empty((end - start, view.shape[1]), dtype=torch.uint8, device=view.device)
            for start, end in bounds
        )
        for (start, end), data in zip(bounds, channel.receive(buffers), strict=True):
            if is_closed(self._connection):
                raise TransferError(f"{self._greeting.agent} closed the link during a write")
            rows = torch.from_numpy(runs[start:end].astype(np.int64)).to(view.device)
            view[rows] = data


def chunk_bounds(num_runs: int, run_bytes: int) -> Iterator[tuple[int, int]]:
    """How both ends cut a write: half-open bounds of runs of at most CHUNK_BYTES."""
    step = max(1, CHUNK_BYTES // run_bytes)
    for start in range(0, num_runs, step):
        yield start, min(start + step, num_runs)
