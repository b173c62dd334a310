"""LMCache as a connector: the sender of a link stores its chunks there, the receiver loads them.

Each chunk is an object of its own, under a key that is never used again, and goes when it has been
read: it is nobody's prefix. What workers shall find again is in the tier.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Final

import torch

from baton.kvtransfer.channel import Offer
from baton.kvtransfer.collective import CollectiveWire
from baton.kvtransfer.communicator import TRANSFER_TIMEOUT_S
from baton.kvtransfer.connector import Notice, PeerKey
from baton.kvtransfer.frames import Greeting
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.lmcache.client import TIMEOUT_S, Kind, LMCacheClient
from baton.kvtransfer.lmcache.messages import KEY_BYTES
from baton.kvtransfer.wire import ConnectorLimits
from baton.kvtransfer.wire_connector import WireConnector
from baton.protos.errors import TransferError

_SPACE: Final = "baton-link"
_SHORTEST_SLEEP_S: Final = 0.0005
_LONGEST_SLEEP_S: Final = 0.01


class LMCacheConnector(WireConnector):
    """Moves blocks of `pool` through the LMCache server at `address`, which must be on this machine
    and the peer's. See `Connector` for the contract; control messages go from worker to worker.

    Raises ConfigError if `pool` is not its layout or LMCache is not installed, TransferError if the
    server does not answer.
    """

    def __init__(
        self,
        pool: torch.Tensor,
        layout: KVLayout,
        key: PeerKey,
        *,
        address: str,
        on_notice: Callable[[PeerKey, Notice], None],
        host: str = "127.0.0.1",
        limits: ConnectorLimits | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._client = LMCacheClient(address, timeout_s=timeout_s)
        wire = CollectiveWire(pool, layout, key, host=host, channels=LMCacheChannels(self._client))
        super().__init__(wire, on_notice=on_notice, limits=limits)

    def close(self) -> None:
        super().close()
        self._client.close()


class LMCacheChannels:
    """See `Channels`."""

    advice = "KV moves by LMCache between workers of one server only"

    def __init__(self, client: LMCacheClient) -> None:
        self._client = client
        self.name = f"LMCache {_instance(client)}"

    def offer(self) -> Offer:
        name = uuid.uuid4().hex
        return Offer(name, lambda: LMCacheChannel(self._client, name))

    def accept(self, greeting: Greeting) -> LMCacheChannel:
        return LMCacheChannel(self._client, greeting.rendezvous)


def _instance(client: LMCacheClient) -> str:
    """The server may be starting, too. TransferError where it does not come."""
    deadline_s = time.monotonic() + TRANSFER_TIMEOUT_S
    while True:
        try:
            return client.instance()
        except TransferError:
            if time.monotonic() > deadline_s:
                raise


class LMCacheChannel:
    """See `Channel`. Chunk number n of either end is the same object."""

    def __init__(self, client: LMCacheClient, name: str) -> None:
        self._client = client
        self._name = name
        self._num_chunks = 0

    def send(self, chunks: Iterator[torch.Tensor]) -> None:
        for chunk in chunks:
            raw = chunk.view(-1).view(torch.uint8)
            keys = [self._next_key()]

            def write(_: int, place: torch.Tensor, raw: torch.Tensor = raw) -> None:
                place.copy_(raw)

            kind = Kind(_SPACE, raw.numel())
            # A full server makes room beside.
            self._repeat(lambda: self._client.store(kind, keys, write), "has no room for KV")  # noqa: B023

    def receive(self, chunks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        for chunk in chunks:
            raw = chunk.view(-1).view(torch.uint8)
            keys = [self._next_key()]

            def read(_: int, found: torch.Tensor, raw: torch.Tensor = raw) -> None:
                raw.copy_(found)

            kind = Kind(_SPACE, raw.numel())
            self._repeat(
                lambda: self._client.load(kind, keys, read, delete=True),  # noqa: B023
                "was not given the KV that was sent",
            )
            yield chunk

    def _next_key(self) -> bytes:
        name = f"{self._name} {self._num_chunks}".encode()
        self._num_chunks += 1
        return hashlib.blake2b(name, digest_size=KEY_BYTES).digest()

    def _repeat(self, attempt: Callable[[], int], problem: str) -> None:
        """Until it is done. TransferError when it takes too long."""
        deadline_s = time.monotonic() + TRANSFER_TIMEOUT_S
        pause_s = _SHORTEST_SLEEP_S
        while not attempt():
            if time.monotonic() > deadline_s:
                raise TransferError(f"LMCache at {self._client.address} {problem}")
            time.sleep(pause_s)
            pause_s = min(_LONGEST_SLEEP_S, 2 * pause_s)
