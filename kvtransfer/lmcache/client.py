"""A worker's side of an LMCache server on this machine: objects in and out of its shared memory.

Nothing of LMCache is trusted with the identity of an object here: see `tier` for how a block proves
that it is the one that was asked for.
"""

from __future__ import annotations

import importlib
import mmap
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import torch

from baton.kvtransfer.lmcache.config import VERSION, check_installed, check_known
from baton.kvtransfer.lmcache.messages import (
    METHOD,
    PROTOCOL,
    Count,
    EndLoad,
    EndStore,
    Gone,
    Hello,
    Load,
    Lookup,
    Places,
    Reply,
    Request,
    Store,
    Welcome,
    decode_reply,
    encode,
)
from baton.kvtransfer.lmcache.process import QUIET
from baton.protos.errors import TransferError

R = TypeVar("R", Welcome, Count, Places)

# Of one request. A server that is slower is worth no more than computing.
TIMEOUT_S: Final = 2.0
# A lookup or a load may wait for slower storage for this part of the time that its caller waits.
_STORAGE_SHARE: Final = 0.7


class _Rpc:
    """LMCache's own client. What it imports reports to its makers and warns, unless told not to."""

    def __init__(self, address: str) -> None:
        os.environ.update(QUIET)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from lmcache.v1.multiprocess.protocols.server_module import ServerModuleCallRequest
            from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

            # Its stubs do not show what it makes of its backend's constants.
            zmq: Any = importlib.import_module("zmq")
            self._call_type = ServerModuleCallRequest
            # What a closed client had still to send to a silent server is not waited for: in a
            # context that does, no later client gets through either.
            self._context = zmq.Context()
            self._context.setsockopt(zmq.LINGER, 0)
            self._client = RequestClientFactory.create(address, context=self._context)

    def call(self, request: Request, timeout_s: float) -> tuple[Reply | None, str]:
        """The answer, or None and what was wrong. TimeoutError, and whatever LMCache raises."""
        call = self._call_type(method=METHOD, payload=encode(request))
        response = self._client.server_module_call(call).result(timeout_s)
        return (decode_reply(response.payload) if response.success else None), response.error

    def close(self) -> None:
        self._client.close()
        self._context.term()


@dataclass(frozen=True, slots=True)
class _Connection:
    """One run of the server. `memory` is its shared memory, uint8, as long as that run lives."""

    rpc: _Rpc
    server: str
    instance: str
    memory: torch.Tensor


class Kind(NamedTuple):
    """Objects of one size that may stand for each other, if their keys are equal."""

    space: str
    num_bytes: int


class LMCacheClient:
    """Stores and loads objects. From any thread.

    It connects with its first call, and again after one that failed: a server that was restarted is
    another one, whose memory is mapped anew. Every call ends within `timeout_s` for each of the two
    or three requests that it is, with a TransferError if the server does not answer or refuses.

    Raises ConfigError if LMCache is not installed, or `address` is none.
    """

    def __init__(self, address: str, *, timeout_s: float = TIMEOUT_S) -> None:
        check_installed("lmcache")
        check_known("lmcache", address)
        self.address = address
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._connection: _Connection | None = None

    def instance(self) -> str:
        """Names the server, also after a restart."""
        return self._connect().instance

    def lookup(self, kind: Kind, keys: Sequence[bytes]) -> int:
        """How many leading keys are there."""
        connection = self._connect()
        request = Lookup(connection.server, *kind, b"".join(keys), self._wait_s)
        return self._ask(connection, request, Count).count

    def load(
        self,
        kind: Kind,
        keys: Sequence[bytes],
        read: Callable[[int, torch.Tensor], None],
        *,
        delete: bool = False,
    ) -> int:
        """Calls `read(i, object)` for the leading keys that are there; how many those are.

        The object is uint8 [num_bytes] in shared memory, and the caller's during that call only.
        """
        connection = self._connect()
        request = Load(connection.server, *kind, b"".join(keys), self._wait_s)
        places = self._ask(connection, request, Places)
        try:
            for index, offset in zip(places.indices, places.offsets, strict=True):
                read(index, _object(connection, kind, offset))
        finally:
            self._ask(connection, EndLoad(connection.server, places.ticket, delete), Count)
        return len(places.indices)

    def store(
        self, kind: Kind, keys: Sequence[bytes], write: Callable[[int, torch.Tensor], None]
    ) -> int:
        """Calls `write(i, object)` for every key that is new and has room; how many are there then.

        Readers see an object only after all of this call's are written.
        """
        connection = self._connect()
        request = Store(connection.server, *kind, b"".join(keys))
        places = self._ask(connection, request, Places)
        for index, offset in zip(places.indices, places.offsets, strict=True):
            write(index, _object(connection, kind, offset))
        ended = self._ask(connection, EndStore(connection.server, places.ticket), Count)
        return places.present + ended.count

    def close(self) -> None:
        self._drop(self._connection)

    @property
    def _wait_s(self) -> float:
        return self._timeout_s * _STORAGE_SHARE

    def _connect(self) -> _Connection:
        with self._lock:
            if self._connection is None:
                self._connection = self._open()
            return self._connection

    def _open(self) -> _Connection:
        rpc = _Rpc(self.address)
        try:
            welcome = self._call(rpc, Hello(), Welcome)
            memory = self._map(welcome)
        except BaseException:
            rpc.close()
            raise
        return _Connection(rpc, welcome.server, welcome.instance, memory)

    def _map(self, welcome: Welcome) -> torch.Tensor:
        if (welcome.protocol, welcome.version) != (PROTOCOL, VERSION):
            raise TransferError(
                f"LMCache at {self.address} is {welcome.version} with protocol {welcome.protocol},"
                f" but must be {VERSION} with {PROTOCOL}"
            )
        if not welcome.shm_name:
            raise TransferError(
                f"LMCache at {self.address} shares no memory: start it with --no-l1-use-lazy and"
                " --shm-name, on this machine, with enough of /dev/shm"
            )
        path = f"/dev/shm/{welcome.shm_name.lstrip('/')}"
        try:
            with open(path, "r+b") as file:
                shared = mmap.mmap(file.fileno(), welcome.pool_bytes)
        except (OSError, ValueError) as error:
            raise TransferError(
                f"LMCache at {self.address} is on another machine, or its memory cannot be opened:"
                f" {error}"
            ) from error
        # The tensor keeps the mapping; the server's end does not invalidate it.
        return torch.frombuffer(shared, dtype=torch.uint8)

    def _ask(self, connection: _Connection, request: Request, kind: type[R]) -> R:
        try:
            return self._call(connection.rpc, request, kind)
        except TransferError:
            self._drop(connection)
            raise

    def _call(self, rpc: _Rpc, request: Request, kind: type[R]) -> R:
        name = type(request).__name__
        try:
            reply, problem = rpc.call(request, self._timeout_s)
        except TimeoutError as error:
            raise TransferError(
                f"LMCache at {self.address} did not answer {name} within {self._timeout_s:g} s"
            ) from error
        except Exception as error:
            # Whatever its transport raises: ZMQ, gRPC and their decoders each have their own.
            raise TransferError(f"LMCache at {self.address}: {name}: {error}") from error
        if isinstance(reply, kind):
            return reply
        if isinstance(reply, Gone):
            raise TransferError(f"LMCache at {self.address} was restarted")
        raise TransferError(f"LMCache at {self.address} refuses {name}: {problem or reply}")

    def _drop(self, connection: _Connection | None) -> None:
        with self._lock:
            if connection is None or self._connection is not connection:
                return
            self._connection = None
        connection.rpc.close()


def _object(connection: _Connection, kind: Kind, offset: int) -> torch.Tensor:
    end = offset + kind.num_bytes
    if offset < 0 or end > connection.memory.numel():
        raise TransferError("LMCache names bytes outside its memory")
    return connection.memory[offset:end]
