"""A small OpenAI-like HTTP server on a thread: what the command line's tools talk to in tests."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORKER = {
    "worker_id": "decode-1",
    "role": "decode",
    "state": "up",
    "address": "127.0.0.1:5",
    "incarnation": "i",
    "model": "fake",
    "age_s": 0.25,
    "in_flight_requests": 0,
    "load": {
        "num_running": 3,
        "num_waiting": 1,
        "queued_prefill_tokens": 77,
        "running_kv_tokens": 10,
        "total_blocks": 200,
        "free_blocks": 150,
        "prefill_tokens_per_s": 1234.0,
        "decode_step_s": 0.0051,
        "draining": False,
    },
}


@dataclass
class FakeServer:
    """`say` are the pieces of every answer; `behave` is ok, refuse, cut, error_event or stall."""

    url: str = ""
    say: list[str] = field(default_factory=lambda: ["Hel", "lo", "!"])
    behave: str = "ok"
    gap_s: float = 0.0
    tokenizes: bool = True
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    # Answers to any other path, and what was posted to them.
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    posted: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    state = FakeServer()

    class Handler(_Handler):
        server_state = state

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients that leave in the middle of an answer are what some tests are about.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: FakeServer

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": "fake"}]})
        elif self.path == "/baton/workers":
            self._json(200, {"workers": [WORKER]})
        elif self.path in self.server_state.documents:
            self._json(200, self.server_state.documents[self.path])
        else:
            self._error(404, "no such path", "not_found")

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        state.headers.append({k.lower(): v for k, v in self.headers.items()})
        if self.path == "/tokenize" and state.tokenizes:
            self._json(200, {"tokens": [5, 6, 7, 5]})
        elif self.path in state.documents:
            state.posted.append(body)
            self._json(200, state.documents[self.path])
        elif self.path in ("/v1/completions", "/v1/chat/completions"):
            state.bodies.append(body)
            if state.behave == "refuse":
                self._error(429, "too much at once", "overloaded")
            else:
                self._stream(body)
        else:
            self._error(404, "no such path", "not_found")

    def _stream(self, body: dict[str, Any]) -> None:
        state = self.server_state
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("x-baton-plan", "decode=d0 reason=test")
        self.end_headers()
        for piece in state.say:
            time.sleep(state.gap_s)
            delta = {"delta": {"content": piece}} if "messages" in body else {"text": piece}
            self._event({"choices": [{"index": 0, **delta}], "usage": None})
        if state.behave == "cut":
            self.close_connection = True
            return
        if state.behave == "stall":
            time.sleep(1.0)
            self.close_connection = True
            return
        if state.behave == "error_event":
            self._event({"error": {"message": "the engine failed", "code": "worker_lost"}})
        prompt = body.get("prompt", "")
        length = len(prompt) if isinstance(prompt, list) else len(str(prompt).split())
        usage = {
            "prompt_tokens": length,
            "completion_tokens": len(state.say),
            "prompt_tokens_details": {"cached_tokens": 2},
        }
        self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, document: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(document).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        try:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        except OSError:
            self.close_connection = True

    def _json(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, message: str, code: str) -> None:
        self._json(status, {"error": {"message": message, "type": "t", "code": code}})
