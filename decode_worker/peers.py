"""This decode worker's connections to prefill workers: one `Handover` stream per incarnation."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Final

from baton.handover.lender import Borrower
from baton.kvtransfer.connector import Connector, PeerKey
from baton.kvtransfer.hello import CallerHandshake, Identity
from baton.kvtransfer.layout import KVLayout
from baton.protos import worker_pb2 as pb
from baton.protos.errors import (
    AuthenticationError,
    BatonError,
    LayoutMismatchError,
    PeerLostError,
)
from baton.protos.stream import StreamCall

log = logging.getLogger(__name__)

OnMessage = Callable[["PrefillPeer", pb.PrefillMessage], None]
OnLost = Callable[["PrefillPeer", str], None]
OnConnected = Callable[["PrefillPeer"], None]

# What the called side ends a greeting with when no further attempt can go better.
_REFUSALS: Final = (LayoutMismatchError, AuthenticationError)
_Call = StreamCall[pb.DecodeMessage, pb.PrefillMessage]
_MAX_REFUSED: Final = 1024


class PrefillPeer:
    """One connection to a prefill worker's incarnation: the stream and the KV wire beside it."""

    def __init__(
        self, target: pb.PrefillTarget, session: int, on_message: OnMessage, on_lost: OnLost
    ) -> None:
        self.key = PeerKey(target.worker_id, target.incarnation, session)
        # Of the sender's blocks, once connected.
        self.layout: KVLayout | None = None
        self._address = target.address
        self._on_message = on_message
        self._on_lost = on_lost
        self._call: _Call | None = None
        self._reader: asyncio.Task[None] | None = None
        self.lost = False

    async def connect(self, identity: Identity, connector: Connector) -> None:
        """Exchanges greetings and connects the KV wire.

        Raises PeerLostError when the worker cannot be reached or is another incarnation,
        LayoutMismatchError when its KV cannot become this pool's, AuthenticationError when the
        two do not share a secret.
        """
        handshake = CallerHandshake(identity, self.key.session)
        try:
            call = await _Call.open(self._address, "Handover", pb.PrefillMessage)
        except BatonError as error:
            raise PeerLostError(f"{self.key.worker_id}: {error.message}") from error
        self._call = call
        call.send(pb.DecodeMessage(challenge=handshake.challenge()))
        theirs = (await self._answer(call, "challenge")).challenge
        call.send(pb.DecodeMessage(hello=handshake.hello(theirs)))
        info = handshake.accept((await self._answer(call, "hello")).hello)
        if info.key != self.key:
            raise PeerLostError(f"{self._address} is {info.key}, expected {self.key}")
        await asyncio.to_thread(connector.connect, info)
        self.layout = info.layout
        self._reader = asyncio.create_task(self._read(call), name=f"prefill-{self.key.worker_id}")

    async def _answer(self, call: _Call, kind: str) -> pb.PrefillMessage:
        """The other's next message, of that kind; what it refused with becomes ours."""
        try:
            message = await call.read()
        except BatonError as error:
            kind_of = type(error) if isinstance(error, _REFUSALS) else PeerLostError
            raise kind_of(f"{self.key.worker_id}: {error.message}") from error
        if message is None or message.WhichOneof("message") != kind:
            raise PeerLostError(f"{self.key.worker_id} did not greet first")
        return message

    def send(self, message: pb.DecodeMessage) -> None:
        """Sends a message; one that is sent to a lost peer is dropped, as `on_lost` was called.

        What waits to be written is bounded by the requests in flight to this worker.
        """
        if not self.lost and self._call is not None:
            self._call.send(message)

    def borrower(self) -> Borrower:
        """As whom it pulls prefixes from here, which it may do once it is connected."""
        if self.layout is None:
            raise PeerLostError(f"{self.key} is not connected")
        return Borrower(key=self.key, layout=self.layout, send=self.send, end=self.end)

    def end(self, reason: str) -> None:
        """The KV wire to it is lost, and with it the connection: the next request makes another."""
        if not self.lost:
            self.lost = True
            if self._call is not None:
                self._call.close(reason)
            self._on_lost(self, reason)

    async def close(self) -> None:
        """Ends the stream without calling `on_lost`."""
        self.lost = True
        if self._call is not None:
            self._call.close()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self, call: _Call) -> None:
        reason = "its stream ended"
        while True:
            try:
                message = await call.read()
            except BatonError as error:
                reason = error.message
                break
            if message is None:
                break
            self._on_message(self, message)
        self.end(reason)


class PeerTable:
    """Connects on first use, once per incarnation, however many requests ask at the same time.

    A connection that was lost is replaced by a new one, with a higher session, for the next
    request; an incarnation whose KV does not fit is not asked again.
    """

    def __init__(
        self,
        identity: Identity,
        connector: Connector,
        *,
        handshake_timeout_s: float,
        on_message: OnMessage,
        on_lost: OnLost,
        on_connected: OnConnected,
    ) -> None:
        self._identity = identity
        self._connector = connector
        self._timeout_s = handshake_timeout_s
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_connected = on_connected
        self._sessions = itertools.count(1)
        # By `PeerKey.agent`.
        self._peers: dict[str, asyncio.Task[PrefillPeer]] = {}
        self._refused: dict[str, BatonError] = {}

    async def get(self, target: pb.PrefillTarget) -> PrefillPeer:
        """The connected peer. Raises BatonError when it cannot be had in the handshake's time."""
        agent = PeerKey(target.worker_id, target.incarnation).agent
        if agent in self._refused:
            raise self._refused[agent]
        task = self._peers.get(agent)
        if task is None:
            task = asyncio.create_task(self._connect(target), name=f"connect-{target.worker_id}")
            self._peers[agent] = task
        return await asyncio.shield(task)

    async def _connect(self, target: pb.PrefillTarget) -> PrefillPeer:
        peer = PrefillPeer(target, next(self._sessions), self._on_message, self._lose)
        try:
            async with asyncio.timeout(self._timeout_s):
                await peer.connect(self._identity, self._connector)
        except TimeoutError:
            await self._forget(peer)
            raise PeerLostError(
                f"no handshake with {target.worker_id} at {target.address} in {self._timeout_s} s"
            ) from None
        except (LayoutMismatchError, AuthenticationError) as error:
            self._refuse(peer.key.agent, error)
            await self._forget(peer)
            raise
        except BaseException:
            await self._forget(peer)
            raise
        self._on_connected(peer)
        return peer

    def _refuse(self, agent: str, error: BatonError) -> None:
        log.error("no KV from %s: %s", agent, error.message)
        self._refused[agent] = error
        if len(self._refused) > _MAX_REFUSED:
            del self._refused[next(iter(self._refused))]

    async def _forget(self, peer: PrefillPeer) -> None:
        self._peers.pop(peer.key.agent, None)
        await peer.close()
        # A handshake that was too late for us may still have opened the wire.
        await asyncio.to_thread(self._connector.disconnect, peer.key)

    def _lose(self, peer: PrefillPeer, reason: str) -> None:
        log.warning("the connection to %s is gone: %s", peer.key, reason)
        self._peers.pop(peer.key.agent, None)
        self._on_lost(peer, reason)

    async def close(self) -> None:
        """Closes every connection."""
        tasks, self._peers = list(self._peers.values()), {}
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, PrefillPeer):
                await outcome.close()
