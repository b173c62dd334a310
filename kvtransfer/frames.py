"""What the two ends of a collective link say to each other beside their data: bytes on a socket."""

from __future__ import annotations

import json
import select
import socket
import struct
from dataclasses import asdict, dataclass, fields
from typing import Final

import numpy as np

from baton.kvtransfer.mapping import Grid
from baton.kvtransfer.wire import RunIds
from baton.protos.errors import TransferError

_HEAD: Final = struct.Struct("<4sII")
_MAGIC: Final = b"BKC1"
_ACK: Final = b"K"
_MAX_GREETING_BYTES: Final = 64 << 10
_MAX_RUNS: Final = 1 << 26
_MAX_NOTICE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """The first frame: who sends and from where, the receiver's own token, how to find the
    channel (`channel.Offer`), and into which runs of the receiver's pool all writes go.
    """

    agent: str
    token: str
    host: str
    rendezvous: str
    offset: int
    run_bytes: int
    stride: int
    count: int

    @property
    def grid(self) -> Grid:
        return Grid(
            offset=self.offset, run_bytes=self.run_bytes, stride=self.stride, count=self.count
        )


@dataclass(frozen=True, slots=True)
class WriteFrame:
    """Data for these runs follows over the communicator; without any, the link is only tried."""

    runs: RunIds
    notice: bytes


def send_greeting(connection: socket.socket, greeting: Greeting) -> None:
    """OSError, also for the socket's timeout; so for the others here."""
    data = json.dumps(asdict(greeting)).encode()
    connection.sendall(_HEAD.pack(_MAGIC, len(data), 0) + data)


def read_greeting(connection: socket.socket) -> Greeting:
    """TransferError if it is not one; OSError, also for the socket's timeout."""
    _, num_bytes, _ = _read_head(connection, _MAX_GREETING_BYTES, 0) or (b"", 0, 0)
    try:
        values = json.loads(_read(connection, num_bytes))
        if set(values) != {field.name for field in fields(Greeting)}:
            raise ValueError(f"its fields are {', '.join(values)}")
        return Greeting(**values)
    except (ValueError, TypeError) as error:
        raise TransferError(f"what came is not a greeting: {error}") from error


def send_write(connection: socket.socket, frame: WriteFrame) -> None:
    """Its data must follow over the communicator."""
    head = _HEAD.pack(_MAGIC, len(frame.notice), len(frame.runs))
    connection.sendall(head + frame.notice + frame.runs.astype("<i4").tobytes())


def read_write(connection: socket.socket) -> WriteFrame | None:
    """None when the sender has closed the link. TransferError, OSError."""
    head = _read_head(connection, _MAX_NOTICE_BYTES, _MAX_RUNS)
    if head is None:
        return None
    notice = _read(connection, head[1])
    runs = np.frombuffer(_read(connection, 4 * head[2]), dtype="<i4").astype(np.int32)
    return WriteFrame(runs, notice)


def send_ack(connection: socket.socket) -> None:
    """The last write is in place."""
    connection.sendall(_ACK)


def read_ack(connection: socket.socket) -> None:
    """TransferError when the receiver has closed the link instead."""
    if connection.recv(1) != _ACK:
        raise TransferError("the receiver ended the link")


def is_closed(connection: socket.socket) -> bool:
    """Whether either side has ended the link, as far as is known without waiting.

    From any thread. Not by `recv`, which waits for as long as the socket's timeout.
    """
    look = select.poll()
    try:
        look.register(connection, select.POLLRDHUP)
    except ValueError:
        return True
    return bool(look.poll(0))


def _read_head(
    connection: socket.socket, most_first: int, most_second: int
) -> tuple[bytes, int, int] | None:
    data = connection.recv(_HEAD.size, socket.MSG_WAITALL)
    if not data:
        return None
    if len(data) != _HEAD.size:
        raise TransferError("the link ended within a frame")
    magic, first, second = _HEAD.unpack(data)
    if magic != _MAGIC or first > most_first or second > most_second:
        raise TransferError("what came is not a frame of a collective link")
    return magic, first, second


def _read(connection: socket.socket, num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes:
        part = connection.recv(num_bytes - len(data))
        if not part:
            raise TransferError("the link ended within a frame")
        data += part
    return bytes(data)
