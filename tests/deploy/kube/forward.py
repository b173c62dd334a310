"""The server's end of `kubectl port-forward`: SPDY/3.1 streams to a local port.

Each connection that kubectl takes is a pair of streams, one for errors and one for data. Only the
latter ever brings any, so streams' headers, which would tell them apart, are not read.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO

_CONTROL = 0x8003_0000
_SYN_STREAM, _SYN_REPLY, _PING, _GOAWAY = 1, 2, 6, 7
_FIN = 1


@dataclass
class Forwarder:
    """Serves one upgraded connection until it ends."""

    connection: socket.socket
    incoming: BinaryIO
    target: tuple[str, int]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _sockets: dict[int, socket.socket] = field(default_factory=dict)
    # One compressor for all headers of a connection.
    _headers: zlib._Compress = field(default_factory=zlib.compressobj)

    def serve(self) -> None:
        """Returns when kubectl has gone."""
        try:
            while head := self.incoming.read(8):
                first, second = struct.unpack(">II", head)
                flags, body = second >> 24, self.incoming.read(second & 0xFF_FFFF)
                if not first & 0x8000_0000:
                    self._data(first, flags, body)
                elif (kind := first & 0xFFFF) == _SYN_STREAM:
                    self._reply(body[:4])
                elif kind == _PING:
                    self._send(_CONTROL | _PING, 0, body)
                elif kind == _GOAWAY:
                    return
        finally:
            for one in self._sockets.values():
                one.close()

    def _send(self, first: int, flags: int, body: bytes) -> None:
        with self._lock:
            self.connection.sendall(struct.pack(">II", first, flags << 24 | len(body)) + body)

    def _reply(self, stream: bytes) -> None:
        """No headers, as a block of none."""
        block = self._headers.compress(bytes(4)) + self._headers.flush(zlib.Z_SYNC_FLUSH)
        self._send(_CONTROL | _SYN_REPLY, 0, stream + block)

    def _data(self, stream: int, flags: int, body: bytes) -> None:
        if body:
            if stream not in self._sockets:
                self._sockets[stream] = socket.create_connection(self.target, timeout=60)
                threading.Thread(target=self._answers, args=(stream,), daemon=True).start()
            self._sockets[stream].sendall(body)
        if flags & _FIN and stream in self._sockets:
            with contextlib.suppress(OSError):
                self._sockets[stream].shutdown(socket.SHUT_WR)

    def _answers(self, stream: int) -> None:
        with contextlib.suppress(OSError):
            while data := self._sockets[stream].recv(65536):
                self._send(stream, 0, data)
            # The error stream of the pair came before it; its end without a word is good news.
            self._send(stream, _FIN, b"")
            self._send(stream - 2, _FIN, b"")
