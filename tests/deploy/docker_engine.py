"""A stand-in for Docker's engine, which the real `docker build` sends its context to. It builds
nothing: base images cannot be had where the tests run.
"""

from __future__ import annotations

import io
import tarfile
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_DONE = b'{"stream":"Successfully built\\n"}\n'


class Engine(ThreadingHTTPServer):
    """Keeps what each build was asked for: its options, and the files of its context by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.builds: list[tuple[dict[str, str], dict[str, bytes]]] = []

    @property
    def env(self) -> dict[str, str]:
        """Leads the client here; BuildKit would ask for more than a context."""
        return {"DOCKER_HOST": f"tcp://127.0.0.1:{self.server_port}", "DOCKER_BUILDKIT": "0"}


@contextmanager
def serving() -> Iterator[Engine]:
    with Engine() as engine:
        thread = threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield engine
        finally:
            engine.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Engine
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(b"{}")

    def do_POST(self) -> None:
        query = urllib.parse.urlsplit(self.path).query
        with tarfile.open(fileobj=io.BytesIO(self._chunks())) as context:
            found = {one.name: context.extractfile(one) for one in context if one.isfile()}
            files = {name: file.read() for name, file in found.items() if file is not None}
        self.server.builds.append((dict(urllib.parse.parse_qsl(query)), files))
        self._answer(_DONE)

    def _chunks(self) -> bytes:
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("api-version", "1.45")
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing."""
