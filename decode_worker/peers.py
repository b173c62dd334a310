"""This decode worker's connections to prefill workers: one `Handover` stream per incarnation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import grpc

from baton.kvtransfer.connector import Connector, PeerInfo, PeerKey
from baton.kvtransfer.hello import check_peer_hello, peer_info_from_hello
from baton.protos import worker_pb2 as pb
from baton.protos.errors import PeerLostError
from baton.protos.server import GRPC_OPTIONS
from baton.protos.worker_pb2_grpc import WorkerStub

log = logging.getLogger(__name__)

OnMessage = Callable[["PrefillPeer", pb.PrefillMessage], None]
OnLost = Callable[["PrefillPeer", str], None]


class PrefillPeer:
    """One prefill worker's incarnation: the stream to it and the KV wire beside it."""

    def __init__(self, target: pb.PrefillTarget, on_message: OnMessage, on_lost: OnLost) -> None:
        self.key = PeerKey(target.worker_id, target.incarnation)
        self._address = target.address
        self._on_message = on_message
        self._on_lost = on_lost
        # One entry per request in flight to this worker, which the request table bounds.
        self._outgoing: asyncio.Queue[pb.DecodeMessage | None] = asyncio.Queue()
        self._channel: grpc.aio.Channel | None = None
        self._reader: asyncio.Task[None] | None = None
        self.lost = False

    async def connect(self, hello: pb.PeerHello, connector: Connector) -> None:
        """Exchanges hellos and connects the KV wire.

        Raises PeerLostError when the worker cannot be reached or is another incarnation, and
        LayoutMismatchError when its KV does not fit this pool.
        """
        self._channel = grpc.aio.insecure_channel(self._address, options=GRPC_OPTIONS)
        self._outgoing.put_nowait(pb.DecodeMessage(hello=hello))
        call = WorkerStub(self._channel).Handover(self._requests())
        try:
            first = await call.read()
        except grpc.aio.AioRpcError as error:
            raise PeerLostError(f"{self.key.worker_id}: {error.details()}") from error
        if first is grpc.aio.EOF or first.WhichOneof("message") != "hello":
            raise PeerLostError(f"{self.key.worker_id} did not greet first")
        check_peer_hello(hello, first.hello)
        info: PeerInfo = peer_info_from_hello(first.hello)
        if info.key != self.key:
            raise PeerLostError(f"{self._address} is {info.key}, expected {self.key}")
        await asyncio.to_thread(connector.connect, info)
        self._reader = asyncio.create_task(self._read(call), name=f"prefill-{self.key.worker_id}")

    def send(self, message: pb.DecodeMessage) -> None:
        """Queues a message; one that is sent to a lost peer is dropped, as `on_lost` was called."""
        if not self.lost:
            self._outgoing.put_nowait(message)

    async def close(self) -> None:
        """Ends the stream without calling `on_lost`."""
        self.lost = True
        self._outgoing.put_nowait(None)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()

    async def _requests(self) -> AsyncIterator[pb.DecodeMessage]:
        while (message := await self._outgoing.get()) is not None:
            yield message

    async def _read(self, call: grpc.aio.StreamStreamCall) -> None:
        reason = "its stream ended"
        try:
            # Not `async for`: grpc refuses to mix it with the `read` of the greeting.
            while (message := await call.read()) is not grpc.aio.EOF:
                self._on_message(self, message)
        except grpc.aio.AioRpcError as error:
            reason = error.details() or error.code().name
        self.lost = True
        self._outgoing.put_nowait(None)
        self._on_lost(self, reason)


class PeerTable:
    """Connects on first use, once per incarnation, however many requests ask at the same time."""

    def __init__(
        self,
        hello: pb.PeerHello,
        connector: Connector,
        *,
        handshake_timeout_s: float,
        on_message: OnMessage,
        on_lost: OnLost,
    ) -> None:
        self._hello = hello
        self._connector = connector
        self._timeout_s = handshake_timeout_s
        self._on_message = on_message
        self._on_lost = on_lost
        self._peers: dict[PeerKey, asyncio.Task[PrefillPeer]] = {}

    async def get(self, target: pb.PrefillTarget) -> PrefillPeer:
        """The connected peer. Raises BatonError when it cannot be had in the handshake's time."""
        key = PeerKey(target.worker_id, target.incarnation)
        task = self._peers.get(key)
        if task is None:
            task = asyncio.create_task(self._connect(target), name=f"connect-{target.worker_id}")
            self._peers[key] = task
        return await asyncio.shield(task)

    async def _connect(self, target: pb.PrefillTarget) -> PrefillPeer:
        peer = PrefillPeer(target, self._on_message, self._lose)
        try:
            async with asyncio.timeout(self._timeout_s):
                await peer.connect(self._hello, self._connector)
        except TimeoutError:
            await self._forget(peer)
            raise PeerLostError(
                f"no handshake with {target.worker_id} at {target.address} in {self._timeout_s} s"
            ) from None
        except BaseException:
            await self._forget(peer)
            raise
        return peer

    async def _forget(self, peer: PrefillPeer) -> None:
        # Incarnations never come back, so what is kept of them would only grow.
        self._peers.pop(peer.key, None)
        await peer.close()

    def _lose(self, peer: PrefillPeer, reason: str) -> None:
        log.warning("prefill worker %s is gone: %s", peer.key.worker_id, reason)
        self._peers.pop(peer.key, None)
        self._on_lost(peer, reason)

    async def close(self) -> None:
        """Closes every connection."""
        tasks, self._peers = list(self._peers.values()), {}
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, PrefillPeer):
                await outcome.close()
