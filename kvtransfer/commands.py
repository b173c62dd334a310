"""What a connector's owner tells its thread, and what the thread counts."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from baton.kvtransfer.connector import PeerInfo, PeerKey
from baton.kvtransfer.pieces import Push


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a peer; the result comes when it is warm or failed."""

    peer: PeerInfo
    result: Future[None]


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Lose a peer; the result comes when its pushes cannot be posted any more."""

    key: PeerKey
    result: Future[None]


@dataclass(frozen=True, slots=True)
class Wake:
    """Only ends a sleep."""


@dataclass(slots=True)
class Counts:
    """See `ConnectorStatistics`; the pump is the only writer."""

    num_done: int = 0
    num_failed: int = 0
    num_bytes: int = 0
    num_notices: int = 0
    num_bad_notices: int = 0
    num_callback_errors: int = 0


Command = Push | Connect | Disconnect | Wake
