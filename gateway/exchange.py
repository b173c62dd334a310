"""One HTTP request and its response, over raw ASGI: nothing between a token and the socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from baton.gateway.errors_http import error_body, error_headers
from baton.gateway.limits import Deadline
from baton.gateway.tenants import EVERYBODY
from baton.protos.errors import (
    BatonError,
    CancelledError,
    InvalidRequestError,
    PayloadTooLargeError,
)

_JSON = b"application/json"
_SSE = b"text/event-stream; charset=utf-8"


class Exchange:
    """Reads the body within a limit and writes one response: whole, or event by event.

    `extra_headers` may be added to until the response starts. `tenant` is whose request it is.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope = scope
        self.headers = Headers(scope=scope)
        self.query = QueryParams(scope["query_string"])
        self.request_id = request_id
        self.tenant = EVERYBODY
        self.extra_headers: list[tuple[bytes, bytes]] = []
        self.started = False
        self.completed = False
        self._receive = receive
        self._send = send
        self._body_read = False

    def use_request_id(self, request_id: str) -> None:
        """The id that logs and the response header show."""
        self.request_id = request_id

    async def read_body(self, limit_bytes: int, timeout_s: float) -> bytes:
        """The whole body. PayloadTooLargeError as soon as it is known to be too large."""
        declared = self.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit_bytes:
            raise _too_large(limit_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._read(limit_bytes)
        except TimeoutError as error:
            raise InvalidRequestError(
                f"the body did not arrive within {timeout_s:g} s", code="body_timeout"
            ) from error

    async def _read(self, limit_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise CancelledError("the client left before its request was complete")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit_bytes:
                raise _too_large(limit_bytes)
            if not message.get("more_body", False):
                self._body_read = True
                return b"".join(parts)

    async def watch_client(self, deadline: Deadline) -> None:
        """Ends the deadline when the client leaves. Run beside the answer, after the body was
        read.
        """
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # The server reports a disconnect after a complete response too.
        if not self.completed:
            deadline.end(CancelledError("the client left"))

    async def respond(self, body: bytes, *, status: int = 200, content_type: bytes = _JSON) -> None:
        """Sends a whole response."""
        headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
        if not self._body_read and self.scope["method"] not in ("GET", "HEAD"):
            # The rest of a body that nobody will read must not be taken for the next request.
            headers.append((b"connection", b"close"))
        await self._start(status, headers)
        await self._finish(body)

    async def write_event(self, data: bytes) -> None:
        """Sends complete server-sent events; waits while the client does not read."""
        if not self.started:
            await self._start(200, [(b"content-type", _SSE), (b"cache-control", b"no-cache")])
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end_events(self, data: bytes) -> None:
        """The last events of a stream."""
        await self._finish(data)

    async def fail(self, error: BatonError) -> None:
        """Sends the error object; inside a stream as its last event. Nothing if the client left."""
        if not self.started:
            self.extra_headers += error_headers(error)
            await self.respond(error_body(error), status=error.http_status)
        elif not self.completed:
            await self.end_events(b"data: " + error_body(error) + b"\n\n")

    async def _finish(self, body: bytes) -> None:
        self.completed = True
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.started = True
        request_id = self.request_id.encode()
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, (b"x-request-id", request_id), *self.extra_headers],
            }
        )


def _too_large(limit_bytes: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"the body is larger than {limit_bytes} bytes: send a smaller one")
