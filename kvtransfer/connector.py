"""The seam between hand-overs and whatever moves their bytes.

A `Connector` belongs to one pool of one worker process. It connects that pool to pools of other
workers, writes blocks into them, and tells its owner what others have written here. Shipped
implementations: `nixl.NixlConnector` and `collective.CollectiveConnector` (processes and
machines), `local.LocalConnector` (one process).

A peer is a *connection to an incarnation* of a worker. What is known of it dies with it: after
`disconnect`, or after the wire reported it lost, every push to that key fails with PeerLostError,
for ever; its successor has another key. A successor is another incarnation (the worker restarted)
or the same one with a higher session (only the wire was lost).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from baton.kvtransfer.layout import KVLayout
from baton.protos.errors import TransferError

_NOTICE: Final = struct.Struct("<4sQII")
_NOTICE_MAGIC: Final = b"BKV1"


@dataclass(frozen=True, slots=True)
class PeerKey:
    """One connection to one incarnation of one worker.

    `session` counts the connections that the two have had: when a wire between living workers is
    lost, the next one has a higher number, and nothing that belongs to the old one reaches it.
    Neither text may hold '@' or be empty.
    """

    worker_id: str
    incarnation: str
    session: int = 0

    def __post_init__(self) -> None:
        for name, value in (("worker_id", self.worker_id), ("incarnation", self.incarnation)):
            if not value or "@" in value:
                raise TransferError(
                    f"{name} is {value!r}, but must be text without '@'", param=name
                )

    @property
    def agent(self) -> str:
        """The worker's name on the wire, the same in every session."""
        return f"{self.worker_id}@{self.incarnation}"

    def __str__(self) -> str:
        return f"{self.agent} (connection {self.session})" if self.session else self.agent

    @classmethod
    def parse(cls, agent: str) -> PeerKey:
        """The key, without a session, of an `agent`; TransferError if it is not one."""
        worker_id, _, incarnation = agent.partition("@")
        return cls(worker_id, incarnation)


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What another worker must know to write into this one's pool. It travels in `PeerHello`.

    `agent_metadata` is the connector's own and opaque; `pool_address` is where the pool starts in
    its process (bytes), `device_id` its GPU (0 on CPU). `ranks` are those of the worker's other
    tensor-parallel ranks, in order, each with a pool of its own.
    """

    key: PeerKey
    agent_metadata: bytes
    layout: KVLayout
    pool_address: int
    num_blocks: int
    device_id: int
    ranks: tuple[PeerInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Notice:
    """Travels with a write and arrives after its data, in any order with notices of other writes.

    Says that blocks `[first_block, first_block + num_blocks)`, counted in the *request's* list of
    blocks (not in the pool), of the reservation `(request_id, epoch)` hold their KV now.
    """

    request_id: str
    epoch: int
    first_block: int
    num_blocks: int

    def to_bytes(self) -> bytes:
        head = _NOTICE.pack(_NOTICE_MAGIC, self.epoch, self.first_block, self.num_blocks)
        return head + self.request_id.encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Notice:
        """Reads what `to_bytes` wrote; TransferError otherwise."""
        try:
            magic, epoch, first_block, num_blocks = _NOTICE.unpack_from(data)
            request_id = data[_NOTICE.size :].decode()
        except (struct.error, UnicodeDecodeError) as error:
            raise TransferError(f"{data[:64]!r} is not a notice: {error}") from error
        if magic != _NOTICE_MAGIC:
            raise TransferError(f"a notice begins with {_NOTICE_MAGIC!r}, this one with {magic!r}")
        return cls(request_id, epoch, first_block, num_blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorStatistics:
    """Counts since construction, and what is there now.

    `num_pushes` were accepted; of them `num_done` are written, `num_failed` ended with an error
    and `num_in_flight` are neither. `num_bytes` counts written bytes. `num_bad_notices` were not
    readable or came from an unknown peer; `num_callback_errors` counts exceptions of `done` and
    `on_notice` callbacks.
    """

    num_peers: int = 0
    num_pushes: int = 0
    num_done: int = 0
    num_failed: int = 0
    num_in_flight: int = 0
    num_bytes: int = 0
    num_notices: int = 0
    num_bad_notices: int = 0
    num_callback_errors: int = 0


class Connector(Protocol):
    """Moves blocks out of one pool into others. All methods may be called from any thread.

    Callbacks (`done`, `on_notice`) come from the connector's thread, one at a time, never from
    inside a call of the owner's; they must be short (hand over to a queue or a loop), and what
    they raise is logged.
    """

    def local_info(self) -> PeerInfo:
        """What others need to `connect` here."""
        ...

    def connect(self, peer: PeerInfo) -> None:
        """Makes `peer` writable and warms the wire to it. Blocks: up to seconds the first time.

        Connecting again to a connected key does nothing; a higher session of a connected
        incarnation ends the lower one. Raises LayoutMismatchError if this pool's KV cannot be
        written into the peer's, PeerLostError if that key was lost or disconnected before, is
        older than what is connected, or does not answer, TransferError.
        """
        ...

    def disconnect(self, key: PeerKey) -> None:
        """Final for that key: its transfers fail with PeerLostError.

        A key that was never connected is ignored.
        """
        ...

    def push(
        self,
        key: PeerKey,
        local_blocks: Sequence[int],
        remote_blocks: Sequence[int],
        notice: Notice,
        done: Callable[[TransferError | None], None],
        *,
        skip_tokens: int = 0,
    ) -> None:
        """Writes the KV in `local_blocks` into `remote_blocks`, then delivers `notice` to the peer.

        Both lists are consecutive blocks of one request, and the first token of `remote_blocks` is
        number `skip_tokens` of the first local block. Between pools of equal block sizes that is 0
        and local block i goes to remote block i; otherwise the local blocks must reach the last
        remote block, or end with the prompt within it. `notice` counts remote blocks; a large push
        to an unlike pool delivers several that cover the same blocks.

        Returns at once. `done(error)` comes exactly once, when the data can no longer be written:
        None if all of it has been, PeerLostError if the peer is gone or was never connected,
        TransferError otherwise. Raises TransferError, and then never calls `done`, for block
        lists that are empty, outside a pool or do not cover each other, when too many pushes wait,
        and after `close`.
        """
        ...

    def expect(self, delta: int) -> None:
        """So many more (or, negative, fewer) hand-overs to here are open now; with 0, the last
        notices of one are about to come, and are looked for at once.

        While any is, arriving notices are looked for eagerly; otherwise they are delivered too,
        only later (within the connector's idle period, some milliseconds).
        """
        ...

    def statistics(self) -> ConnectorStatistics: ...

    def close(self) -> None:
        """Ends every push, then the thread; what comes after it is refused. Twice is fine.

        Each `done` has come when it returns, with an error unless all was written.
        """
        ...
