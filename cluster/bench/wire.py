"""One HTTP/1.1 connection that reads streamed completions with as little work as possible.

The client shares its machine with the server under test, so an event costs it a search for a line
end and a time stamp; JSON is parsed only for the last event and for errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from array import array
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from baton.cluster.client import Endpoint

MAX_EVENT_BYTES = 4 << 20


@dataclass(slots=True, kw_only=True)
class Sample:
    """What one request did. Times are seconds on one clock; `gaps_s` are between its events.

    `error` is empty when it was answered completely.
    """

    start_s: float
    first_s: float = 0.0
    end_s: float = 0.0
    gaps_s: array[float] = field(default_factory=lambda: array("d"))
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    plan: str = ""
    error: str = ""


class Connection(asyncio.Protocol):
    """Sends one request at a time. After an error it is closed and must not be used again."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._transport: asyncio.Transport | None = None
        self._sample: Sample | None = None
        self._done: asyncio.Future[None] | None = None
        self._last_s = 0.0
        self._status = 0
        self._streams = False
        self._tail = b""
        self._finished = False
        self.reusable = True

    async def send(self, request: bytes) -> Sample:
        """Sends and reads the whole answer. Never raises for what the server does: see
        `Sample.error`.
        """
        if self._transport is None:
            raise ConnectionError("the connection is not open")
        self._parser = httptools.HttpResponseParser(self)
        self._status, self._streams, self._tail, self._finished = 0, False, b"", False
        self._sample = sample = Sample(start_s=time.perf_counter())
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._done
        finally:
            self._sample = None
            sample.end_s = time.perf_counter()
        return sample

    def close(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio.Transports in all but name.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._sample is None:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the answer is not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._fail(f"connection lost: {exc}" if exc else "the server closed the connection")

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered == b"content-type":
            self._streams = value.startswith(b"text/event-stream")
        elif lowered == b"x-baton-plan" and self._sample is not None:
            self._sample.plan = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._sample is None:
            return
        data = self._tail + body if self._tail else body
        if len(data) > MAX_EVENT_BYTES:
            self._fail(f"an event is longer than {MAX_EVENT_BYTES} bytes")
            return
        if not self._streams:
            self._tail = data
            return
        now_s = time.perf_counter()
        *events, self._tail = data.replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            self._on_event(event, now_s, self._sample)

    def on_message_complete(self) -> None:
        if self._status != 200 or not self._streams:
            self._fail(_refusal(self._status, self._tail), keep=self._parser.should_keep_alive())
        elif not self._finished:
            self._fail("the stream ended before [DONE]")
        else:
            self.reusable = self.reusable and self._parser.should_keep_alive()
            self._resolve()

    def _on_event(self, event: bytes, now_s: float, sample: Sample) -> None:
        if not event.startswith(b"data:"):
            return
        if event.endswith(b"[DONE]"):
            self._finished = True
        elif b'"usage":{' in event or b'"usage": {' in event:
            _read_usage(event, sample)
        elif b'"choices"' not in event:
            self._fail(_refusal(200, event[5:]))
        elif sample.first_s:
            sample.gaps_s.append(now_s - self._last_s)
            self._last_s = now_s
        else:
            sample.first_s = self._last_s = now_s

    def _fail(self, reason: str, keep: bool = False) -> None:
        if self._sample is not None and not self._sample.error:
            self._sample.error = reason
        if not keep:
            self.close()
        self._resolve()

    def _resolve(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


def _read_usage(event: bytes, sample: Sample) -> None:
    usage = json.loads(event[5:])["usage"]
    sample.num_prompt_tokens = int(usage["prompt_tokens"])
    sample.num_output_tokens = int(usage["completion_tokens"])
    details = usage.get("prompt_tokens_details") or {}
    sample.num_cached_tokens = int(details.get("cached_tokens") or 0)


def _refusal(status: int, body: bytes) -> str:
    try:
        reason = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        reason = body[:200].decode("utf-8", "replace").strip()
    return f"HTTP {status}: {reason}" if status != 200 else f"in the stream: {reason}"


async def connect(endpoint: Endpoint) -> Connection:
    """Opens a connection. Raises OSError."""
    parts = urlsplit(endpoint.base)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    context = ssl.create_default_context() if secure else None
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(host), host, port, ssl=context)
    return connection


def encode_request(endpoint: Endpoint, path: str, body: bytes) -> bytes:
    """A POST of JSON, ready to be written."""
    parts = urlsplit(endpoint.base)
    lines = [
        f"POST {parts.path}{path} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in endpoint.headers.items()),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Pool:
    """Open connections, at most as many as requests are under way at once."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._idle: list[Connection] = []

    async def send(self, request: bytes, timeout_s: float) -> Sample:
        """One request on any connection. Never raises for what the server does."""
        start_s = time.perf_counter()
        connection: Connection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while self._idle and connection is None:
                    candidate = self._idle.pop()
                    connection = candidate if candidate.reusable else None
                connection = connection or await connect(self._endpoint)
                sample = await connection.send(request)
        except TimeoutError:
            return _failed(start_s, f"no complete answer within {timeout_s:g} s", connection)
        except OSError as error:
            return _failed(start_s, f"cannot connect: {error.strerror or error}", connection)
        if connection.reusable:
            self._idle.append(connection)
        return sample

    def close(self) -> None:
        for connection in self._idle:
            with contextlib.suppress(OSError):
                connection.close()
        self._idle = []


def _failed(start_s: float, reason: str, connection: Connection | None) -> Sample:
    if connection is not None:
        connection.close()
    return Sample(start_s=start_s, end_s=time.perf_counter(), error=reason)
