"""The connectors of a worker's tensor-parallel ranks as one: `GroupConnector`.

Each rank has a pool with the same blocks and its own heads, and a connector of its own. A push
becomes one push for each pair of ranks with heads in common (`mapping.heads_to_send`), and is done
when all of them are; blocks are reported as written when every rank that sends here has written its
heads of them. A worker of one rank is a group of one, whose calls go straight through.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Final, Protocol

from baton.kvtransfer.connector import (
    Connector,
    ConnectorStatistics,
    Notice,
    PeerInfo,
    PeerKey,
)
from baton.kvtransfer.mapping import heads_to_send
from baton.protos.errors import LayoutMismatchError, TransferError

OnNotice = Callable[[PeerKey, Notice], None]
Done = Callable[[TransferError | None], None]

# Receptions of one peer that are partly proved; beyond it the oldest is forgotten, and times out.
_MAX_PARTLY: Final = 4096


class RankPool(Protocol):
    """The pool of a rank in another process. `open` raises what making a connector raises."""

    def open(self, name: str, key: PeerKey, host: str, on_notice: OnNotice) -> Connector: ...


def rank_key(key: PeerKey, rank: int) -> PeerKey:
    """The name of one rank's connector; rank 0 has the worker's own."""
    return replace(key, worker_id=f"{key.worker_id}+{rank}") if rank else key


@dataclass(slots=True)
class _Peer:
    """A connected worker.

    `links`: each rank here with each rank there that it writes to. `senders`: each rank there (its
    agent) with each rank here that it writes to, and the place of that pair among the masks of
    `partly`: by request and epoch, a bit mask of the blocks that each pair has written, and last
    the mask of those that were reported.
    """

    key: PeerKey
    links: tuple[tuple[int, PeerInfo], ...]
    senders: dict[tuple[str, int], int]
    partly: OrderedDict[tuple[str, int], list[int]] = field(default_factory=OrderedDict)

    def prove(self, place: int, notice: Notice) -> list[Notice]:
        """Notices of the blocks that all pairs have written now."""
        if len(self.senders) == 1:
            return [notice]
        reception = (notice.request_id, notice.epoch)
        masks = self.partly.setdefault(reception, [0] * (len(self.senders) + 1))
        masks[place] |= ((1 << notice.num_blocks) - 1) << notice.first_block
        everywhere = masks[0]
        for mask in masks[1:-1]:
            everywhere &= mask
        fresh = everywhere & ~masks[-1]
        masks[-1] |= fresh
        if len(self.partly) > _MAX_PARTLY:
            self.partly.popitem(last=False)
        return [replace(notice, first_block=a, num_blocks=n) for a, n in _runs(fresh)]


class GroupConnector:
    """See `Connector` for the contract."""

    def __init__(
        self, makers: Sequence[Callable[[OnNotice], Connector]], *, on_notice: OnNotice
    ) -> None:
        """Makes the connector of each rank, in order; raises what making one raises."""
        self._on_notice = on_notice
        # Guards the peers; callbacks of several ranks come one at a time.
        self._lock = threading.Lock()
        self._callbacks = threading.Lock()
        self._peers: dict[str, _Peer] = {}
        self._bases: dict[str, str] = {}
        made: list[Connector] = []
        try:
            for rank, make in enumerate(makers):
                made.append(make(partial(self._hear, rank)))
        except BaseException:
            for connector in made:
                connector.close()
            raise
        self._ranks = tuple(made)
        self._infos = tuple(connector.local_info() for connector in made)

    def local_info(self) -> PeerInfo:
        return replace(self._infos[0], ranks=self._infos[1:])

    def connect(self, peer: PeerInfo) -> None:
        theirs = (replace(peer, ranks=()), *peer.ranks)
        known = self._pair_up(peer.key, theirs)
        with self._lock:
            before = self._peers.get(peer.key.agent)
            if before is None or before.key.session < peer.key.session:
                self._peers[peer.key.agent] = known
                self._bases |= {info.key.agent: peer.key.agent for info in theirs}
        try:
            for rank, info in known.links:
                self._ranks[rank].connect(info)
        except BaseException:
            if before is None or before.key != peer.key:
                self.disconnect(peer.key)
            raise

    def disconnect(self, key: PeerKey) -> None:
        with self._lock:
            peer = self._peers.get(key.agent)
            if peer is not None and peer.key == key:
                del self._peers[key.agent]
                self._bases = {a: base for a, base in self._bases.items() if base != key.agent}
        if peer is None or peer.key != key:
            self._ranks[0].disconnect(key)
            return
        for rank, info in peer.links:
            self._ranks[rank].disconnect(info.key)

    def push(
        self,
        key: PeerKey,
        local_blocks: Sequence[int],
        remote_blocks: Sequence[int],
        notice: Notice,
        done: Done,
        *,
        skip_tokens: int = 0,
    ) -> None:
        peer = self._peers.get(key.agent)
        # Whoever is not connected is rank 0's to refuse.
        known = peer is not None and peer.key == key
        targets = [(rank, info.key) for rank, info in peer.links] if peer and known else [(0, key)]
        if len(targets) > 1:
            done = _Parts(len(targets), done, self._callbacks)
        posted = False
        for rank, target in targets:
            try:
                self._ranks[rank].push(
                    target, local_blocks, remote_blocks, notice, done, skip_tokens=skip_tokens
                )
            except TransferError as error:
                if not posted:
                    raise
                done(error)
            posted = True

    def expect(self, delta: int) -> None:
        for rank in self._ranks:
            rank.expect(delta)

    def statistics(self) -> ConnectorStatistics:
        """Sums over the ranks, but for the number of peers."""
        each = [rank.statistics() for rank in self._ranks]
        sums = {f.name: sum(getattr(one, f.name) for one in each) for f in fields(each[0])}
        return ConnectorStatistics(**{**sums, "num_peers": len(self._peers)})

    def close(self) -> None:
        for rank in self._ranks:
            rank.close()

    def _pair_up(self, key: PeerKey, theirs: Sequence[PeerInfo]) -> _Peer:
        """Raises LayoutMismatchError where the ranks of one side would not fill the other's pools.

        With shared KV heads who writes to whom differs by direction.
        """
        links: list[tuple[int, PeerInfo]] = []
        senders: dict[tuple[str, int], int] = {}
        unfilled = {
            *((info.key.agent, head) for info in theirs for head in info.layout.heads),
            *((i, head) for i, mine in enumerate(self._infos) for head in mine.layout.heads),
        }
        for rank, mine in enumerate(self._infos):
            for info in theirs:
                if sent := heads_to_send(mine.layout, info.layout):
                    links.append((rank, info))
                    unfilled -= {(info.key.agent, head) for head in sent}
                if received := heads_to_send(info.layout, mine.layout):
                    senders[info.key.agent, rank] = len(senders)
                    unfilled -= {(rank, head) for head in received}
        if unfilled:
            heads = ", ".join(map(str, sorted({head for _, head in unfilled})))
            raise LayoutMismatchError(
                f"KV cannot be mapped between all ranks of these workers: nobody would write KV"
                f" head {heads} of some of them. Here are {len(self._infos)} ranks of"
                f" {self._infos[0].layout.describe()}; {key.worker_id} has {len(theirs)} of"
                f" {theirs[0].layout.describe()}"
            )
        return _Peer(key=key, links=tuple(links), senders=senders)

    def _hear(self, rank: int, key: PeerKey, notice: Notice) -> None:
        with self._lock:
            peer = self._peers.get(self._bases.get(key.agent, ""))
            place = None if peer is None else peer.senders.get((key.agent, rank))
            if peer is None or place is None:
                return
            proved = peer.prove(place, notice)
        base = replace(key, worker_id=peer.key.worker_id)
        with self._callbacks:
            for one in proved:
                self._on_notice(base, one)


class _Parts:
    """The `done` of a push that is several: calls the owner's when the last has ended."""

    def __init__(self, count: int, done: Done, callbacks: threading.Lock) -> None:
        self._left = count
        self._done = done
        self._error: TransferError | None = None
        self._callbacks = callbacks

    def __call__(self, error: TransferError | None) -> None:
        with self._callbacks:
            self._left -= 1
            self._error = self._error or error
            if not self._left:
                self._done(self._error)


def _runs(mask: int) -> Iterator[tuple[int, int]]:
    """First place and length of each run of ones."""
    place = 0
    while mask:
        zeros = (mask & -mask).bit_length() - 1
        mask >>= zeros
        ones = (~mask & (mask + 1)).bit_length() - 1
        yield place + zeros, ones
        mask >>= ones
        place += zeros + ones
