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
import torch

from baton.kvtransfer.connector import PeerInfo, PeerKey
from baton.kvtransfer.mapping import Grid

RunIds = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorLimits:
    """Bounds on a connector's queue and waits.

    `max_pushes` may be accepted and unfinished at a time. `connect_timeout_s` bounds one
    `connect`, `write_timeout_s` one write (a peer that takes longer is half-open: it is lost), and
    `drain_timeout_s` what a disconnect or a close waits for writes under way before it cuts them
    off. The thread sleeps at most `eager_poll_s` between looks while something is expected, and
    `idle_poll_s` otherwise. `staging_bytes` is the size of the buffer in which blocks for unlike
    pools are converted; it is allocated when the first such peer connects.
    """

    max_pushes: int = 4096
    connect_timeout_s: float = 20.0
    write_timeout_s: float = 30.0
    drain_timeout_s: float = 2.0
    eager_poll_s: float = 0.001
    idle_poll_s: float = 0.02
    staging_bytes: int = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Which runs of bytes pushes to one peer read and write.

    `source` is the memory that they are read from: this side's pool, or a staging buffer. `local`
    are its runs and `remote` those of the peer's pool, both numbered from 0; all have one length.
    """

    source: torch.Tensor
    local: tuple[Grid, ...]
    remote: Grid


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

    @property
    def pool(self) -> torch.Tensor: ...

    def enter_thread(self) -> None:
        """The first call from the connector's thread."""
        ...

    def open(self, peer: PeerInfo, route: Route) -> Transfer:
        """Starts connecting; the transfer is done when the wire is warm. TransferError.

        No other session of that incarnation is open.
        """
        ...

    def write(
        self, key: PeerKey, local_runs: RunIds, remote_runs: RunIds, notice: bytes
    ) -> Transfer:
        """Posts a write of local run i to remote run i, of the peer's route; `notice` arrives
        after the data. TransferError.
        """
        ...

    def drop(self, key: PeerKey) -> None:
        """Ends an open peer: nothing is written to it any more."""
        ...

    def received(self) -> list[tuple[str, bytes]]:
        """Notices that came since the last call, each with the sender's `PeerKey.agent`."""
        ...

    def close(self) -> None:
        """The last call. Every peer was dropped before."""
        ...
