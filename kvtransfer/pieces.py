"""Pushes as the wire gets them: whole between alike pools, else in pieces of a staging chamber."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np

from baton.kvtransfer.connector import Notice, PeerInfo, PeerKey
from baton.kvtransfer.mapping import KVMap
from baton.kvtransfer.wire import RunIds, Transfer
from baton.protos.errors import TransferError


@dataclass(frozen=True, slots=True)
class Push:
    """What `Connector.push` was given, checked."""

    key: PeerKey
    local_blocks: RunIds
    remote_blocks: RunIds
    notice: Notice
    done: Callable[[TransferError | None], None]
    num_bytes: int = 0
    skip_tokens: int = 0


@dataclass(slots=True, eq=False)
class Job:
    """A push until the last of its pieces has ended; `error` is the first one's that failed."""

    push: Push
    num_left: int = 1
    error: TransferError | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Blocks of one push that go in one write."""

    job: Job
    local_blocks: RunIds
    remote_blocks: RunIds
    skip_tokens: int
    notice: Notice


@dataclass(frozen=True, slots=True, eq=False)
class Flight:
    """A posted piece, and the staging chamber that it keeps, if any."""

    piece: Piece
    transfer: Transfer
    chamber: int | None
    posted_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class Peer:
    """An open peer: opening while `warm_up` is there, then connected; leaving once it is lost."""

    info: PeerInfo
    kv_map: KVMap
    deadline_s: float
    warm_up: Transfer | None
    waiters: list[Future[None]]
    # What has no staging chamber yet, in order. Bounded by `max_pushes` and their sizes.
    pending: deque[Piece] = field(default_factory=deque)
    flights: list[Flight] = field(default_factory=list)


def whole(push: Push) -> Piece:
    """A push to an alike pool, in ascending order of local blocks.

    Adjacent blocks make one descriptor, but only where both sides ascend: pools that hand out
    their highest free block first would otherwise pay for each block.
    """
    order = np.argsort(push.local_blocks, kind="stable")
    local, remote = push.local_blocks[order], push.remote_blocks[order]
    return Piece(Job(push), local, remote, 0, push.notice)


def cut(push: Push, kv_map: KVMap, max_blocks: int) -> Iterator[Piece]:
    """Pieces of at most `max_blocks` of the receiver's blocks, each with a notice of its own."""
    num_blocks = len(push.remote_blocks)
    source_size, target_size = kv_map.source.block_size, kv_map.target.block_size
    job = Job(push, num_left=-(-num_blocks // max_blocks))
    for first in range(0, num_blocks, max_blocks):
        end = min(first + max_blocks, num_blocks)
        first_token = push.skip_tokens + first * target_size
        end_token = push.skip_tokens + end * target_size
        yield Piece(
            job,
            push.local_blocks[first_token // source_size : -(-end_token // source_size)],
            push.remote_blocks[first:end],
            first_token % source_size,
            replace(
                push.notice, first_block=push.notice.first_block + first, num_blocks=end - first
            ),
        )


def runs_of(blocks: RunIds, runs_per_block: int) -> RunIds:
    """The runs that `blocks` are, in order."""
    if runs_per_block == 1:
        return blocks
    first = blocks.astype(np.int64)[:, None] * runs_per_block
    return (first + np.arange(runs_per_block)).reshape(-1).astype(np.int32)
