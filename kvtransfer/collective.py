"""KV blocks over NCCL, or gloo on CPU: `CollectiveConnector`.

For clusters without UCX: whatever torch.distributed reaches, this reaches. Each pair of workers
that exchanges KV has a communicator of its own with two ranks, made for its first write and
dropped after a minute without one. NCCL needs two GPUs: it refuses two ranks on one.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import secrets
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

import torch

from baton.kvtransfer.channel import Channels
from baton.kvtransfer.communicator import CONNECT_TIMEOUT_S, Communicators, backend_of
from baton.kvtransfer.connector import Notice, PeerInfo, PeerKey
from baton.kvtransfer.frames import read_greeting
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.links import (
    IDLE_S,
    NO_RUNS,
    Endpoint,
    IncomingLink,
    OutgoingLink,
    Sender,
)
from baton.kvtransfer.pool import check_pool, prefault
from baton.kvtransfer.wire import ConnectorLimits, Route, RunIds, Transfer
from baton.kvtransfer.wire_connector import WireConnector
from baton.protos.errors import ConfigError, LayoutMismatchError, TransferError

# Links that may be open to a worker at once, callers that have not greeted yet included.
_MAX_INCOMING: Final = 1024

logger = logging.getLogger(__name__)


class CollectiveConnector(WireConnector):
    """Moves blocks of `pool` by NCCL (CUDA) or gloo (CPU). See `Connector` for the contract.

    `host` is this machine's address as its peers reach it. Raises ConfigError if `pool` is not
    `[num_blocks, *layout.block_shape]` and contiguous, or if this build of torch lacks the backend.
    """

    def __init__(
        self,
        pool: torch.Tensor,
        layout: KVLayout,
        key: PeerKey,
        *,
        on_notice: Callable[[PeerKey, Notice], None],
        host: str = "127.0.0.1",
        limits: ConnectorLimits | None = None,
    ) -> None:
        super().__init__(
            CollectiveWire(pool, layout, key, host=host), on_notice=on_notice, limits=limits
        )


class CollectiveWire:
    """See `Wire`. Links have threads of their own; the calls here come from one thread."""

    def __init__(
        self,
        pool: torch.Tensor,
        layout: KVLayout,
        key: PeerKey,
        *,
        host: str,
        idle_s: float = IDLE_S,
        channels: Channels | None = None,
    ) -> None:
        """`channels`: what the data goes by; None: communicators."""
        num_blocks = check_pool(pool, layout)
        if channels is None:
            _check_backend(backend_of(pool.device))
        self._channels = channels or Communicators(host, pool.device)
        self.pool = pool
        self._idle_s = idle_s
        if not pool.is_cuda:
            prefault(pool)
        self._listener = _listen(host)
        self._here = Endpoint(
            host=host, port=self._listener.getsockname()[1], token=secrets.token_hex(16)
        )
        metadata = json.dumps(
            {
                "backend": self._channels.name,
                "host": host,
                "port": self._here.port,
                "token": self._here.token,
            }
        ).encode()
        device_id = max(pool.get_device(), 0)
        self.info = PeerInfo(key, metadata, layout, pool.data_ptr(), num_blocks, device_id)
        self._links: dict[PeerKey, OutgoingLink] = {}
        self._inbox: deque[tuple[str, bytes]] = deque()
        self._incoming: dict[threading.Thread, socket.socket] = {}
        self._closed = False
        self._acceptor = threading.Thread(
            target=self._accept, name=f"kv-accept-{key.worker_id}", daemon=True
        )
        self._acceptor.start()

    def enter_thread(self) -> None:
        """Links enter their devices themselves."""

    def open(self, peer: PeerInfo, route: Route) -> Transfer:
        """Makes the channel by an empty write."""
        to = self._endpoint_of(peer)
        sender = Sender(agent=self.info.key.agent, host=self._here.host, channels=self._channels)
        link = OutgoingLink(peer.key, to, sender, route, idle_s=self._idle_s)
        self._links[peer.key] = link
        return link.write(NO_RUNS, NO_RUNS, b"")

    def write(
        self, key: PeerKey, local_runs: RunIds, remote_runs: RunIds, notice: bytes
    ) -> Transfer:
        return self._links[key].write(local_runs, remote_runs, notice)

    def drop(self, key: PeerKey) -> None:
        self._links.pop(key).close()

    def received(self) -> list[tuple[str, bytes]]:
        return [self._inbox.popleft() for _ in range(len(self._inbox))]

    def close(self) -> None:
        self._closed = True
        # A thread that waits in `accept` does not notice that its socket is closed.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(CONNECT_TIMEOUT_S)
        for thread, connection in list(self._incoming.items()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(CONNECT_TIMEOUT_S)

    @property
    def num_communicators(self) -> int:
        """Outgoing links that have a channel now."""
        return sum(link.is_connected for link in self._links.values())

    def _endpoint_of(self, peer: PeerInfo) -> Endpoint:
        try:
            values = json.loads(peer.agent_metadata)
            backend = values.pop("backend")
            endpoint = Endpoint(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TransferError(
                f"the metadata of {peer.key} is not that of a collective connector"
            ) from error
        if backend != self._channels.name:
            raise LayoutMismatchError(
                f"the KV of {self.info.key} moves by {self._channels.name} and that of {peer.key}"
                f" by {backend}: {self._channels.advice}"
            )
        return endpoint

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, address = self._listener.accept()
            except OSError:
                if not self._closed:
                    logger.exception("%s takes no more KV links", self.info.key)
                return
            if len(self._incoming) >= _MAX_INCOMING:
                logger.warning("refusing a KV link from %s: %d are open", address, _MAX_INCOMING)
                connection.close()
                continue
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="kv-from", daemon=True
            )
            self._incoming[thread] = connection
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        """One incoming link, until it ends."""
        try:
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            greeting = read_greeting(connection)
            if not hmac.compare_digest(greeting.token, self._here.token):
                raise TransferError("the caller does not know this worker's token")
            IncomingLink(connection, greeting, self.pool, self._channels, self._put_notice).run()
        except (OSError, RuntimeError, TransferError) as error:
            if not self._closed:
                logger.warning("a KV link to %s broke: %s", self.info.key, error)
        finally:
            connection.close()
            self._incoming.pop(threading.current_thread(), None)

    def _put_notice(self, sender: str, notice: bytes) -> None:
        """From a link's thread; its sender's `max_pushes` bounds it."""
        self._inbox.append((sender, notice))


def _listen(host: str) -> socket.socket:
    try:
        return socket.create_server((host, 0), backlog=128)
    except OSError as error:
        raise ConfigError(
            f"host is {host!r}, but no port there can be bound ({error})", param="host"
        ) from error


def _check_backend(backend: str) -> None:
    available = {
        "nccl": torch.distributed.is_nccl_available,
        "gloo": torch.distributed.is_gloo_available,
    }
    if not torch.distributed.is_available() or not available[backend]():
        raise ConfigError(
            f"connector nccl moves this pool by {backend}, which this build of torch lacks",
            param="connector",
        )
