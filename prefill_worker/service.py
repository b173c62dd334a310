"""The prefill worker's gRPC side: `Connect` for gateways, `Handover` for decode workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import grpc

from baton.kvtransfer.connector import PeerKey
from baton.kvtransfer.hello import CalledHandshake
from baton.protos import worker_pb2 as pb
from baton.protos.errors import AuthenticationError, BatonError, LayoutMismatchError
from baton.protos.feed import GatewayFeed
from baton.protos.worker_pb2_grpc import WorkerServicer

if TYPE_CHECKING:
    from baton.prefill_worker.worker import PrefillWorker


# A caller that hears one of these need not try again.
_STATUS: Final[dict[type[Exception], grpc.StatusCode]] = {
    LayoutMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    AuthenticationError: grpc.StatusCode.UNAUTHENTICATED,
}


class PrefillService(WorkerServicer):
    """Gateways only listen here; decode workers ask for prompts."""

    def __init__(self, worker: PrefillWorker) -> None:
        self._worker = worker

    async def Connect(
        self,
        requests: AsyncIterator[pb.GatewayMessage],
        context: grpc.aio.ServicerContext[pb.GatewayMessage, pb.WorkerMessage],
    ) -> AsyncIterator[pb.WorkerMessage]:
        """Load reports and KV events, until either side ends the stream."""
        feed = GatewayFeed(self._worker.hello())
        await self._worker.join(feed)
        reader = asyncio.create_task(self._refuse_submits(requests, feed))
        try:
            async for message in feed.messages():
                yield message
        finally:
            reader.cancel()
            self._worker.hub.leave(feed)

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
            handshake = CalledHandshake(self._worker.identity)
            mine = handshake.challenge((await anext(incoming)).challenge)
            yield pb.PrefillMessage(challenge=mine)
            info = handshake.accept((await anext(incoming)).hello)
            key = info.key
            await self._worker.greet(info, lambda: outgoing.put_nowait(None))
            yield pb.PrefillMessage(hello=handshake.hello())
            reader = asyncio.create_task(self._read(incoming, key, outgoing))
            while (message := await outgoing.get()) is not None:
                yield message
        except (StopAsyncIteration, BatonError) as error:
            await context.abort(_STATUS.get(type(error), grpc.StatusCode.UNAVAILABLE), str(error))
        finally:
            if reader is not None:
                reader.cancel()
            if key is not None:
                self._worker.lose(key)

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
                        self._worker.take(key, message.prefill, outgoing.put_nowait)
                    case "reservation":
                        self._worker.reserved(message.reservation)
                    case "cancel":
                        self._worker.cancel(message.cancel.request_id, outgoing.put_nowait)
        finally:
            outgoing.put_nowait(None)

    async def _refuse_submits(
        self, requests: AsyncIterator[pb.GatewayMessage], feed: GatewayFeed
    ) -> None:
        try:
            async for message in requests:
                for submit in message.submits:
                    refusal = "a prefill worker takes prompts from decode workers only"
                    feed.done(
                        pb.Done(
                            handle=submit.handle,
                            finish_reason="error",
                            error_code="invalid_value",
                            error_message=refusal,
                        )
                    )
        finally:
            feed.close()
