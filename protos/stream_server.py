"""The called side of `protos/stream.py`: a worker's `Connect` and `Handover`, as gRPC would call
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NoReturn, Protocol

import grpc

from baton.protos import worker_pb2 as pb
from baton.protos.errors import BatonError, ConfigError
from baton.protos.stream import OK, Frames, MessageType, received_messages

log = logging.getLogger(__name__)

_METHODS: Final[dict[str, MessageType[Any]]] = {
    "Connect": pb.GatewayMessage,
    "Handover": pb.DecodeMessage,
}
# A connection that does not say what it is for is not kept.
_OPENING_S: Final = 15.0


class CallContext(Protocol):
    """The part of gRPC's context that methods use."""

    async def abort(self, code: grpc.StatusCode, details: str = "", /) -> NoReturn: ...


class StreamServicer(Protocol):
    """What answers the calls; a `WorkerServicer` is one."""

    def Connect(
        self, requests: AsyncIterator[pb.GatewayMessage], context: CallContext
    ) -> AsyncIterator[pb.WorkerMessage]: ...

    def Handover(
        self, requests: AsyncIterator[pb.DecodeMessage], context: CallContext
    ) -> AsyncIterator[pb.PrefillMessage]: ...


class StreamServer:
    """Listens, and runs each connection's method in a task that its caller's leaving cancels."""

    def __init__(self, servicer: Any) -> None:
        """servicer: a StreamServicer; methods that it does not have are refused."""
        self._servicer = servicer
        self._running: dict[Frames, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Binds; port 0 takes any free one. Raises ConfigError."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Frames(self._opened, self._lost), host, port
            )
        except OSError as error:
            raise ConfigError(
                f"port is {port}, but {host}:{port} cannot be bound ({error}); "
                "0 takes any free port",
                param="port",
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self, grace_s: float) -> None:
        """Takes no more connections, lets calls end within `grace_s`, then ends them."""
        if self._server is not None:
            self._server.close()
        running = list(self._running.values())
        if running and grace_s > 0:
            await asyncio.wait(running, timeout=grace_s)
        for frames, task in list(self._running.items()):
            task.cancel()
            frames.abort()
        await asyncio.gather(*running, return_exceptions=True)

    def _opened(self, frames: Frames) -> None:
        task = asyncio.get_running_loop().create_task(self._run(frames), name="stream-call")
        self._running[frames] = task

    def _lost(self, frames: Frames) -> None:
        task = self._running.get(frames)
        if task is not None:
            task.cancel()

    async def _run(self, frames: Frames) -> None:
        try:
            code, details = await self._call(frames)
            frames.end(code, details)
        finally:
            del self._running[frames]

    async def _call(self, frames: Frames) -> tuple[str, str]:
        """Answers a call to its end; how it ended."""
        try:
            method, received = await self._method(frames)
            requests = received_messages(frames, received)
            async with contextlib.aclosing(method(requests, _Context())) as answers:
                async for message in answers:
                    frames.send(message.SerializeToString())
                    await frames.writable()
        except _AbortedCall as aborted:
            return aborted.code.name, aborted.details
        except BatonError as error:
            return error.grpc_code, error.message
        except Exception as error:
            log.exception("a call of a worker's stream failed")
            return "INTERNAL", f"{type(error).__name__}: {error}"
        return OK, ""

    async def _method(self, frames: Frames) -> tuple[Callable[..., Any], MessageType[Any]]:
        try:
            opening = await asyncio.wait_for(frames.read(), _OPENING_S)
        except TimeoutError:
            raise _AbortedCall(grpc.StatusCode.CANCELLED, "nothing was asked") from None
        name = (opening or b"").decode("utf-8", "replace")
        if name not in _METHODS:
            raise _AbortedCall(grpc.StatusCode.UNIMPLEMENTED, f"there is no method {name[:40]!r}")
        return getattr(self._servicer, name), _METHODS[name]


class _AbortedCall(Exception):
    """Ends a call from within its method."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class _Context:
    """A CallContext."""

    async def abort(self, code: grpc.StatusCode, details: str = "", /) -> NoReturn:
        raise _AbortedCall(code, details)
