"""Connections between rank 0 and the others: one for steps, one for the rest.

Frames are a 32-bit length and that many bytes. A rank proves with the group's token that it was
started by rank 0. The end of a connection is the end of whoever was there.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from baton.engine.config import EngineConfig
from baton.protos.errors import DeadlineError

MAX_FRAME_BYTES: Final = 64 << 20
CONNECT_TIMEOUT_S: Final = 120.0
# A rank that takes no message for this long is frozen.
SEND_TIMEOUT_S: Final = 60.0
TOKEN_BYTES: Final = 32
STEPS, STATUS = 0, 1
_HELLO: Final = struct.Struct(f"<{TOKEN_BYTES}sHB")
_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSpec:
    """What a rank other than 0 is told at its start. `token` is the group's secret.

    `host`, `port`: where rank 0 listens. `store_port`: its store, through which collectives meet.
    `own_host`: the address of the rank's machine, where that is another one than rank 0's.
    """

    config: EngineConfig
    rank: int
    host: str
    port: int
    store_port: int
    token: bytes
    num_threads: int
    own_host: str = ""

    @property
    def here(self) -> str:
        """Where the rank listens."""
        return self.own_host or self.host


@dataclass(frozen=True, slots=True)
class RankLink:
    """Both connections of rank 0 with one of the others, at either end."""

    rank: int
    steps: socket.socket
    status: socket.socket
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send_step(self, message: bytes) -> None:
        send_frame(self.steps, message)

    def receive_step(self) -> bytearray | None:
        """The next step, or None when rank 0 is done or gone."""
        return receive_frame(self.steps)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Sends a message beside the steps; from any thread. Raises OSError."""
        text = json.dumps(message).encode()
        with self.lock:
            send_frame(self.status, text)

    def hear(self) -> dict[str, Any] | None:
        """The next message beside the steps, or None when the other end is gone."""
        frame = receive_frame(self.status)
        if frame is None:
            return None
        found: dict[str, Any] = json.loads(frame)
        return found

    def end(self) -> None:
        """Ends both connections at either end; whoever reads from them sees it."""
        for connection in (self.steps, self.status):
            _end(connection)

    def close(self) -> None:
        self.end()
        self.steps.close()
        self.status.close()


class RankListener:
    """Rank 0's end, until the others are there."""

    def __init__(self, host: str, token: bytes) -> None:
        self._token = token
        self._server = socket.create_server((host, 0))
        self.port: int = self._server.getsockname()[1]

    def accept(self, ranks: Sequence[int], check: Callable[[], None]) -> list[RankLink]:
        """Waits for both connections of each rank, in any order; `check` may raise meanwhile.

        Raises DeadlineError when one does not come.
        """
        missing = {(rank, kind) for rank in ranks for kind in (STEPS, STATUS)}
        found: dict[tuple[int, int], socket.socket] = {}
        end_s = time.monotonic() + CONNECT_TIMEOUT_S
        self._server.settimeout(0.1)
        try:
            while missing:
                check()
                if time.monotonic() > end_s:
                    raise DeadlineError(
                        f"ranks {sorted({rank for rank, _ in missing})} did not connect within "
                        f"{CONNECT_TIMEOUT_S:g} s"
                    )
                self._accept_one(missing, found)
        except BaseException:
            for connection in found.values():
                connection.close()
            raise
        return [RankLink(rank, found[rank, STEPS], found[rank, STATUS]) for rank in ranks]

    def close(self) -> None:
        self._server.close()

    def _accept_one(
        self, missing: set[tuple[int, int]], found: dict[tuple[int, int], socket.socket]
    ) -> None:
        try:
            connection, _ = self._server.accept()
        except TimeoutError:
            return
        connection.settimeout(5.0)
        try:
            hello = _receive(connection, _HELLO.size)
        except OSError:
            hello = None
        token, *place = _HELLO.unpack(hello) if hello else (b"",)
        if not hmac.compare_digest(token, self._token) or tuple(place) not in missing:
            # Not one of ours: whoever knocks without the token is left outside.
            connection.close()
            return
        rank, kind = place
        missing.remove((rank, kind))
        found[rank, kind] = _tuned(connection)


def connect(spec: RankSpec) -> RankLink:
    """Another rank's end. Raises OSError when rank 0 is not there."""
    connections = []
    for kind in (STEPS, STATUS):
        connection = socket.create_connection((spec.host, spec.port), CONNECT_TIMEOUT_S)
        connection.sendall(_HELLO.pack(spec.token, spec.rank, kind))
        connections.append(_tuned(connection))
        connection.settimeout(None)
    steps, status = connections
    return RankLink(spec.rank, steps, status)


def send_frame(connection: socket.socket, payload: bytes) -> None:
    """Raises OSError when the other end is gone or takes nothing."""
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(payload)} bytes is over {MAX_FRAME_BYTES}")
    connection.sendall(_LENGTH.pack(len(payload)) + payload)


def receive_frame(connection: socket.socket) -> bytearray | None:
    """One frame, or None at the end of the connection."""
    try:
        header = _receive(connection, _LENGTH.size)
        if header is None:
            return None
        (size,) = _LENGTH.unpack(header)
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {size} bytes is over {MAX_FRAME_BYTES}")
        return _receive(connection, size)
    except ConnectionError:
        return None


def _receive(connection: socket.socket, size: int) -> bytearray | None:
    buffer = bytearray(size)
    view, got = memoryview(buffer), 0
    while got < size:
        count = connection.recv_into(view[got:])
        if not count:
            return None
        got += count
    return buffer


def _tuned(connection: socket.socket) -> socket.socket:
    """No delays, no endless sends, and a machine that vanished is noticed within 10 s."""
    connection.settimeout(None)
    timeout = struct.pack("ll", int(SEND_TIMEOUT_S), 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, 4),
        (socket.TCP_KEEPINTVL, 2),
        (socket.TCP_KEEPCNT, 3),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection


def _end(connection: socket.socket) -> None:
    # It fails where the other end was faster.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
