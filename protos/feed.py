"""The worker's half of a `Connect` stream: what goes to one gateway, merged while it is not read.

One `WorkerMessage` leaves per wake-up, holding everything that came since the last one, so a slow
gateway gets larger messages rather than a longer queue. Tokens wake it; reports go along with the
next tokens, or when `flush` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from baton.protos import worker_pb2 as pb
from baton.protos.adapters import AdapterLoad
from baton.protos.convert import adapters_to_proto, kv_events_to_proto, load_to_proto
from baton.protos.errors import OverloadedError
from baton.protos.types import KvEvents, WorkerLoad

# A gateway that lets this much pile up is not reading: drop it, it reconnects to a snapshot.
MAX_PENDING_BYTES = 64 << 20


class GatewayFeed:
    """Everything that waits to go to one gateway. Belongs to one event loop; not thread-safe."""

    def __init__(self, hello: pb.WorkerHello) -> None:
        self._pending = pb.WorkerMessage(hello=hello)
        self._wake = asyncio.Event()
        self._wake.set()
        self._timer: asyncio.TimerHandle | None = None
        self._kv_bytes = 0
        self.closed = False

    def tokens(self, handle: int, token_ids: Sequence[int]) -> None:
        batch = self._pending.tokens
        batch.handles.append(handle)
        batch.num_tokens.append(len(token_ids))
        batch.token_ids.extend(token_ids)
        self._wake.set()

    def logprobs(self, chunk: pb.LogprobChunk) -> None:
        self._pending.logprobs.append(chunk)
        self._wake.set()

    def done(self, done: pb.Done) -> None:
        self._pending.done.append(done)
        self._wake.set()

    def load(self, load: WorkerLoad) -> None:
        self._pending.load.CopyFrom(load_to_proto(load))

    def adapters(self, load: AdapterLoad) -> None:
        self._pending.adapters.CopyFrom(adapters_to_proto(load))

    def kv_events(self, batch: pb.KvEventBatch) -> None:
        packed = (batch.stored, batch.removed, batch.kept, batch.lost, batch.near, batch.far)
        self._kv_bytes += sum(map(len, packed))
        self._pending.kv_events.append(batch)

    def flush(self, within_s: float = 0.0) -> None:
        """What is pending leaves after so many seconds, unless tokens take it along before."""
        if within_s <= 0:
            self._wake.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(within_s, self._wake.set)

    def close(self) -> None:
        """Ends `messages` after what is pending."""
        self.closed = True
        self._wake.set()

    async def messages(self) -> AsyncIterator[pb.WorkerMessage]:
        """Yields until closed. Raises OverloadedError when the gateway has stopped reading."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._kv_bytes > MAX_PENDING_BYTES:
                raise OverloadedError(f"{self._kv_bytes} bytes of KV events wait for this gateway")
            message, self._pending, self._kv_bytes = self._pending, pb.WorkerMessage(), 0
            if message.ByteSize():
                yield message
            if self.closed and not self._wake.is_set():
                return


class FeedHub:
    """All gateways of one worker: broadcasts loads and KV events, numbers the event batches."""

    def __init__(self) -> None:
        self.feeds: set[GatewayFeed] = set()
        self._sequence = 0
        self._adapters: AdapterLoad | None = None

    def join(self, feed: GatewayFeed, snapshot: KvEvents) -> None:
        """Adds a gateway. `snapshot` must be as new as the last broadcast batch."""
        feed.kv_events(kv_events_to_proto(self._sequence, snapshot))
        if self._adapters is not None:
            feed.adapters(self._adapters)
        feed.flush()
        self.feeds.add(feed)

    def leave(self, feed: GatewayFeed) -> None:
        self.feeds.discard(feed)

    def broadcast(
        self, load: WorkerLoad | None, changes: KvEvents, *, within_s: float = 0.0
    ) -> None:
        """Sends a load report and a batch of KV events, if there are any, to every gateway."""
        if changes:
            self._sequence += 1
            batch = kv_events_to_proto(self._sequence, changes)
            for feed in self.feeds:
                feed.kv_events(batch)
        for feed in self.feeds:
            if load is not None:
                feed.load(load)
            feed.flush(within_s)

    def broadcast_adapters(self, load: AdapterLoad) -> None:
        """Tells every gateway, and those that come later, unless it is what they know."""
        if load != self._adapters:
            self._adapters = load
            for feed in self.feeds:
                feed.adapters(load)
                feed.flush()

    def close(self) -> None:
        for feed in self.feeds:
            feed.close()
