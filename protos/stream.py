"""Streams of protobuf messages between Baton's own processes, over plain sockets.

They carry what the two-way streams of `worker.proto` carry, in the same order of messages, without
gRPC's threads between a socket and the event loop: a message is there two to three times sooner
(docs/decisions/0006-streams.md). A connection is one call::

    caller                        called
    name of the method     ──>
    messages               <─>    messages
                           <──    how it ended (a STATUS frame), and the connection's end

A frame is its payload's length (four bytes, little endian; the highest bit marks a STATUS frame)
and the payload. Whoever wants to end a call closes the connection.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, Generic, Protocol, TypeVar, cast

from google.protobuf.message import Message

from baton.protos.errors import (
    AuthenticationError,
    BatonError,
    LayoutMismatchError,
    UnavailableError,
)

MAX_MESSAGE_BYTES: Final = 256 << 20
_HEADER_BYTES: Final = 4
_STATUS_BIT: Final = 1 << 31
# Who falls behind must get larger messages, not older ones: little may be on its way (a step of 256
# requests is some 2 KB), and the rest is merged where it is made.
_BUFFER_BYTES: Final = 64 << 10
_MAX_UNREAD: Final = 16
# A peer whose machine is gone is found within 15 s.
_KEEPALIVE: Final = (
    ("SO_KEEPALIVE", socket.SOL_SOCKET, 1),
    ("TCP_KEEPIDLE", socket.IPPROTO_TCP, 10),
    ("TCP_KEEPINTVL", socket.IPPROTO_TCP, 5),
    ("TCP_KEEPCNT", socket.IPPROTO_TCP, 1),
    ("TCP_USER_TIMEOUT", socket.IPPROTO_TCP, 15_000),
)
# What a called side ends a call with, by gRPC's names, where the caller need not try again.
_REFUSALS: Final[dict[str, type[BatonError]]] = {
    "UNAUTHENTICATED": AuthenticationError,
    "FAILED_PRECONDITION": LayoutMismatchError,
}
OK: Final = "OK"

Sent = TypeVar("Sent", bound=Message)
Received = TypeVar("Received", bound=Message)
Made = TypeVar("Made", bound=Message, covariant=True)


class MessageType(Protocol[Made]):
    """A generated message class."""

    def FromString(self, serialized: bytes, /) -> Made: ...


class Frames(asyncio.Protocol):
    """One end of a connection: frames in and out. Belongs to one event loop.

    on_open: called with this once connected; on_lost: once the connection is gone.
    """

    def __init__(
        self,
        on_open: Callable[[Frames], None] | None = None,
        on_lost: Callable[[Frames], None] | None = None,
    ) -> None:
        self._on_open = on_open
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._unread: deque[bytes] = deque()
        self._error: BatonError | None = None
        self._ended = False
        self._held = False
        self._reader: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    async def read(self) -> bytes | None:
        """The next payload; None when the other side has ended the call well. Raises what it ended
        the call with, UnavailableError when the connection is lost.
        """
        while not self._unread:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        if self._held and len(self._unread) == 1 and self._transport is not None:
            self._held = False
            self._transport.resume_reading()
        return self._unread.popleft()

    def send(self, payload: bytes) -> None:
        """Writes a frame; one to a connection that is gone is dropped, as `read` says so."""
        if len(payload) > MAX_MESSAGE_BYTES:
            raise UnavailableError(f"a message has {len(payload)} bytes: at most 256 MiB are sent")
        self._write(len(payload), payload)

    async def writable(self) -> None:
        """Waits while the other side does not read what was sent."""
        await self._writable.wait()

    def end(self, code: str, details: str) -> None:
        """The called side's last word, and the end of the connection."""
        payload = f"{code}\n{details}".encode()
        self._write(len(payload) | _STATUS_BIT, payload)
        if self._transport is not None:
            self._transport.close()

    def close(self, why: str) -> None:
        """Ends the connection when what was sent is written; reading raises `why`."""
        self._finish(UnavailableError(why))
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are of no class of asyncio's.
        self._transport = wire = cast(asyncio.Transport, transport)
        wire.set_write_buffer_limits(high=_BUFFER_BYTES)
        _set_options(wire.get_extra_info("socket"))
        if self._on_open is not None:
            self._on_open(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            self._take_frames()
        except BatonError as error:
            self.close(error.message)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        why = "the connection was closed" if exc is None else f"the connection is lost: {exc}"
        self._finish(UnavailableError(why))
        if self._on_lost is not None:
            self._on_lost(self)

    def _take_frames(self) -> None:
        buffer, start = self._buffer, 0
        while len(buffer) - start >= _HEADER_BYTES:
            length = int.from_bytes(buffer[start : start + _HEADER_BYTES], "little")
            size = length & ~_STATUS_BIT
            if size > MAX_MESSAGE_BYTES:
                raise UnavailableError(f"the other side begins a message of {size} bytes")
            end = start + _HEADER_BYTES + size
            if end > len(buffer):
                break
            payload = bytes(memoryview(buffer)[start + _HEADER_BYTES : end])
            start = end
            if length & _STATUS_BIT:
                self._finish(_ended_with(payload))
            elif not self._ended:
                self._unread.append(payload)
        if start:
            del buffer[:start]
            self._wake()
        if len(self._unread) >= _MAX_UNREAD and not self._held and self._transport is not None:
            self._held = True
            self._transport.pause_reading()

    def _write(self, length: int, payload: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(length.to_bytes(_HEADER_BYTES, "little") + payload)

    def _finish(self, error: BatonError | None) -> None:
        """The first end counts."""
        if not self._ended:
            self._ended, self._error = True, error
            self._wake()

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)


class StreamCall(Generic[Sent, Received]):
    """The caller's side of one call."""

    def __init__(self, frames: Frames, received: MessageType[Received]) -> None:
        self._frames = frames
        self._received = received

    @classmethod
    async def open(
        cls, address: str, method: str, received: MessageType[Received]
    ) -> StreamCall[Sent, Received]:
        """Connects to `address` (host:port). Raises UnavailableError."""
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            _, frames = await loop.create_connection(Frames, host.strip("[]"), int(port))
        except (OSError, ValueError) as error:
            raise UnavailableError(f"{address} cannot be reached: {error}") from error
        frames.send(method.encode())
        return cls(frames, received)

    async def read(self) -> Received | None:
        """The next message; None when the other side has ended the call well. Raises
        AuthenticationError, LayoutMismatchError, UnavailableError.
        """
        payload = await self._frames.read()
        return None if payload is None else self._received.FromString(payload)

    def send(self, message: Sent) -> None:
        """Sends it without waiting. UnavailableError for one that is too large."""
        self._frames.send(message.SerializeToString())

    async def write(self, message: Sent) -> None:
        """Sends it, and waits while the other side does not read."""
        self.send(message)
        await self._frames.writable()

    def close(self, why: str = "closed here") -> None:
        """Ends the call when what was sent is written; reading raises UnavailableError(why)."""
        self._frames.close(why)


async def received_messages(
    frames: Frames, received: MessageType[Received]
) -> AsyncIterator[Received]:
    """What the caller sends, until it ends the connection."""
    while True:
        try:
            payload = await frames.read()
        except UnavailableError:
            return
        if payload is None:
            return
        yield received.FromString(payload)


def _ended_with(payload: bytes) -> BatonError | None:
    code, _, details = payload.decode("utf-8", "replace").partition("\n")
    if code == OK:
        return None
    return _REFUSALS.get(code, UnavailableError)(details or code)


def _set_options(connection: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, level, value in _KEEPALIVE:
        # Not every system has all of them.
        if hasattr(socket, name):
            connection.setsockopt(level, getattr(socket, name), value)
