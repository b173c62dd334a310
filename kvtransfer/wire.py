"""The seam between a connector's thread and what moves its bytes.

A `Wire` is written for one thread: `WireConnector` makes every call below from its own, and turns
them into the `Connector` contract. So a wire needs no locks, and everything that is hard about
the contract is written once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from baton.kvtransfer.connector import PeerInfo, PeerKey

BlockIds = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorLimits:
    """Bounds on a connector's queue and waits.

    `max_pushes` may be accepted and unfinished at a time. `connect_timeout_s` bounds one
    `connect`, `drain_timeout_s` what a disconnect or a close waits for writes under way before it
    cuts them off. The thread sleeps at most `eager_poll_s` between looks while something is
    expected, and `idle_poll_s` otherwise.
    """

    max_pushes: int = 4096
    connect_timeout_s: float = 20.0
    drain_timeout_s: float = 2.0
    eager_poll_s: float = 0.001
    idle_poll_s: float = 0.02


class Transfer(Protocol):
    """One posted write."""

    def poll(self) -> bool:
        """True when it is written. Raises PeerLostError or TransferError if it failed."""
        ...

    def release(self) -> None:
        """Frees it, cutting it off if it still runs. Once."""
        ...


class Wire(Protocol):
    """Moves bytes between one registered pool and the pools of peers. For one thread."""

    @property
    def info(self) -> PeerInfo: ...

    def enter_thread(self) -> None:
        """The first call from the connector's thread."""
        ...

    def open(self, peer: PeerInfo) -> Transfer:
        """Starts connecting; the transfer is done when the wire is warm. TransferError."""
        ...

    def write(
        self, key: PeerKey, local_blocks: BlockIds, remote_blocks: BlockIds, notice: bytes
    ) -> Transfer:
        """Posts a write to an open peer; `notice` arrives after its data. TransferError."""
        ...

    def drop(self, key: PeerKey) -> None:
        """Ends an open peer: nothing is written to it any more."""
        ...

    def received(self) -> list[tuple[str, bytes]]:
        """Notices that came since the last call, each with `str(key)` of its sender."""
        ...

    def close(self) -> None:
        """The last call. Every peer was dropped before."""
        ...
