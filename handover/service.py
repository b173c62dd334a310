"""The gRPC API that both kinds of workers serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, Protocol

import grpc

from baton.handover.host import WorkerHost
from baton.handover.profile import ProfileCall
from baton.handover.sender import PromptSender
from baton.kvtransfer.connector import PeerKey
from baton.kvtransfer.hello import CalledHandshake
from baton.protos import worker_pb2 as pb
from baton.protos.errors import AuthenticationError, BatonError, LayoutMismatchError
from baton.protos.feed import GatewayFeed
from baton.protos.proof import WorkerGreeting
from baton.protos.worker_pb2_grpc import WorkerServicer

# A caller that says nothing for this long is not kept.
_GREETING_S: Final = 15.0
# A caller that hears one of these need not try again.
_STATUS: Final[dict[type[Exception], grpc.StatusCode]] = {
    LayoutMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    AuthenticationError: grpc.StatusCode.UNAUTHENTICATED,
}


class GatewaySide(Protocol):
    """What a worker does for gateways."""

    def submit(self, feed: GatewayFeed, submit: pb.Submit) -> None: ...
    def connect(self, target: pb.PrefillTarget) -> None:
        """That worker will want to pull a prefix from here."""
        ...

    def abort(self, feed: GatewayFeed, handle: int) -> None: ...
    def leave(self, feed: GatewayFeed) -> None: ...


class WorkerService(WorkerServicer):
    """Gateways' `Connect` streams and other workers' `Handover` streams."""

    def __init__(self, worker: GatewaySide, host: WorkerHost, sender: PromptSender) -> None:
        self._worker = worker
        self._host = host
        self._sender = sender

    async def Connect(
        self,
        requests: AsyncIterator[pb.GatewayMessage],
        context: grpc.aio.ServicerContext[pb.GatewayMessage, pb.WorkerMessage],
    ) -> AsyncIterator[pb.WorkerMessage]:
        """One gateway, until either side ends the stream; then its requests are dropped."""
        incoming, config = aiter(requests), self._host.config
        greeting = WorkerGreeting(config.secret, config.worker_id, config.incarnation)
        try:
            yield greeting.challenge(await asyncio.wait_for(anext(incoming), _GREETING_S))
            greeting.check(await asyncio.wait_for(anext(incoming), _GREETING_S))
        except (StopAsyncIteration, TimeoutError, BatonError) as error:
            await context.abort(_STATUS.get(type(error), grpc.StatusCode.UNAVAILABLE), str(error))
        feed = GatewayFeed(self._host.hello())
        await self._host.join(feed)
        reader = asyncio.create_task(self._read_gateway(incoming, feed))
        try:
            async for message in feed.messages():
                yield message
        finally:
            reader.cancel()
            self._worker.leave(feed)

    async def Handover(
        self,
        requests: AsyncIterator[pb.DecodeMessage],
        context: grpc.aio.ServicerContext[pb.DecodeMessage, pb.PrefillMessage],
    ) -> AsyncIterator[pb.PrefillMessage]:
        """One connection of a decode worker; when its stream ends, so do its prompts."""
        incoming = aiter(requests)
        # One entry per event of a job, and jobs are bounded.
        outgoing: asyncio.Queue[pb.PrefillMessage | None] = asyncio.Queue()
        key: PeerKey | None = None
        reader: asyncio.Task[None] | None = None
        try:
            handshake = CalledHandshake(self._host.identity)
            first = await asyncio.wait_for(anext(incoming), _GREETING_S)
            yield pb.PrefillMessage(challenge=handshake.challenge(first.challenge))
            second = await asyncio.wait_for(anext(incoming), _GREETING_S)
            info = handshake.accept(second.hello)
            key = info.key
            await self._sender.greet(info, outgoing.put_nowait)
            yield pb.PrefillMessage(hello=handshake.hello())
            reader = asyncio.create_task(self._read(incoming, key, outgoing))
            while (message := await outgoing.get()) is not None:
                yield message
        except (StopAsyncIteration, TimeoutError, BatonError) as error:
            await context.abort(_STATUS.get(type(error), grpc.StatusCode.UNAVAILABLE), str(error))
        finally:
            if reader is not None:
                reader.cancel()
            if key is not None:
                self._sender.lose(key)

    async def Profile(
        self,
        requests: AsyncIterator[pb.ProfileMessage],
        context: grpc.aio.ServicerContext[pb.ProfileMessage, pb.ProfileAnswer],
    ) -> AsyncIterator[pb.ProfileAnswer]:
        """One trace, for who proves to know the cluster's secret."""
        incoming, config = aiter(requests), self._host.config
        call = ProfileCall(config.secret, config.worker_id)
        try:
            first = await asyncio.wait_for(anext(incoming), _GREETING_S)
            yield call.challenge(first.challenge)
            request = (await asyncio.wait_for(anext(incoming), _GREETING_S)).request
            call.check(request)
            async for answer in self._host.profiler.record(request):
                yield answer
        except (StopAsyncIteration, TimeoutError):
            await context.abort(grpc.StatusCode.CANCELLED, "nothing was asked")
        except BatonError as error:
            trailing = (("x-baton-error-code", error.code),)
            code = grpc.StatusCode[error.grpc_code]
            await context.abort(code, error.message, trailing)

    async def _read(
        self,
        requests: AsyncIterator[pb.DecodeMessage],
        key: PeerKey,
        outgoing: asyncio.Queue[pb.PrefillMessage | None],
    ) -> None:
        try:
            async for message in requests:
                match message.WhichOneof("message"):
                    case "prefill":
                        self._sender.take(key, message, outgoing.put_nowait)
                    case "reservation":
                        self._sender.reserved(message.reservation)
                    case "cancel":
                        self._sender.cancel(message.cancel.request_id, outgoing.put_nowait)
                    case "lent":
                        self._sender.pulls.on_lent(key, message.lent)
                    case "released":
                        self._sender.pulls.on_released(key, message.released.request_id)
        finally:
            outgoing.put_nowait(None)

    async def _read_gateway(
        self, requests: AsyncIterator[pb.GatewayMessage], feed: GatewayFeed
    ) -> None:
        try:
            async for message in requests:
                for target in message.borrowers:
                    self._worker.connect(target)
                for submit in message.submits:
                    self._worker.submit(feed, submit)
                for handle in message.aborts:
                    self._worker.abort(feed, handle)
        finally:
            feed.close()
