"""The prefill worker's gRPC side: `Connect` for gateways, `Handover` for decode workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc

from baton.kvtransfer.connector import PeerKey
from baton.protos import worker_pb2 as pb
from baton.protos.errors import BatonError
from baton.protos.feed import GatewayFeed
from baton.protos.worker_pb2_grpc import WorkerServicer

if TYPE_CHECKING:
    from baton.prefill_worker.worker import PrefillWorker


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
        """One decode worker's incarnation; when its stream ends, so do its prompts."""
        incoming = aiter(requests)
        try:
            first = await anext(incoming)
            hello = await self._worker.greet(first.hello)
        except (StopAsyncIteration, BatonError) as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            raise
        yield pb.PrefillMessage(hello=hello)
        key = PeerKey(first.hello.worker_id, first.hello.incarnation)
        # One entry per event of a job, and jobs are bounded.
        outgoing: asyncio.Queue[pb.PrefillMessage | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(incoming, key, outgoing))
        try:
            while (message := await outgoing.get()) is not None:
                yield message
        finally:
            reader.cancel()
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
