"""The decode worker's gRPC side: gateways' `Connect` streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc

from baton.protos import worker_pb2 as pb
from baton.protos.feed import GatewayFeed
from baton.protos.worker_pb2_grpc import WorkerServicer

if TYPE_CHECKING:
    from baton.decode_worker.worker import DecodeWorker


class DecodeService(WorkerServicer):
    """`Connect` only: a decode worker calls `Handover`, it does not serve it."""

    def __init__(self, worker: DecodeWorker) -> None:
        self._worker = worker

    async def Connect(
        self,
        requests: AsyncIterator[pb.GatewayMessage],
        context: grpc.aio.ServicerContext[pb.GatewayMessage, pb.WorkerMessage],
    ) -> AsyncIterator[pb.WorkerMessage]:
        """One gateway, until either side ends the stream; then its requests are dropped."""
        feed = GatewayFeed(self._worker.hello())
        await self._worker.join(feed)
        reader = asyncio.create_task(self._read(requests, feed))
        try:
            async for message in feed.messages():
                yield message
        finally:
            reader.cancel()
            self._worker.leave(feed)

    async def _read(self, requests: AsyncIterator[pb.GatewayMessage], feed: GatewayFeed) -> None:
        try:
            async for message in requests:
                for submit in message.submits:
                    self._worker.submit(feed, submit)
                for handle in message.aborts:
                    self._worker.abort(feed, handle)
        finally:
            feed.close()
