"""Tiers of a model that several ranks share: each rank keeps its part of every block.

Rank 0 decides alone. Its index of host memory, and what it asks of the tiers, is everybody's: each
copy and each call is made by all ranks with the same blocks and slots, and is over when the last of
them is done. So a slot has one meaning everywhere; a block is in a tier when every rank's part is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, Final, Protocol, TypeVar

from baton.engine.tiers.copier import BlockCopier
from baton.kvtransfer.tiers.tier import Tier, TierStatistics
from baton.protos.types import KvEvents

T = TypeVar("T")

# Longer than any tier may take. A rank that moves blocks for so long is lost.
_ANSWER_S: Final = 120.0


class TierRank(Protocol):
    """Another rank, which has host memory and tiers of its own; `parallel.tiers` is its side."""

    def begin(self, op: str, **said: Any) -> Future[dict[str, Any]]:
        """Asks for something; its answer comes, or what it failed with, a BatonError.

        Raises one where the rank is gone.
        """
        ...


def on_all(
    ranks: Sequence[TierRank], own: Callable[[], T], op: str, **said: Any
) -> tuple[T, list[dict[str, Any]]]:
    """`own` here while the other ranks do `op`: what it returns, and their answers.

    Nobody is still at work when it returns or raises a BatonError; a TimeoutError, after which the
    engine cannot go on, where that cannot be said.
    """
    futures: list[Future[dict[str, Any]]] = []
    try:
        for rank in ranks:
            futures.append(rank.begin(op, **said))
        result = own()
    finally:
        if wait(futures, _ANSWER_S).not_done:
            raise TimeoutError(f"a rank did not answer {op} within {_ANSWER_S:g} s")
    return result, [future.result() for future in futures]


class SharedCopier:
    """See `BlockCopier`: every rank copies its part."""

    def __init__(self, own: BlockCopier, ranks: Sequence[TierRank]) -> None:
        self._own = own
        self._ranks = ranks

    def read(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        said = {"blocks": list(block_ids), "slots": list(slots)}
        on_all(self._ranks, lambda: self._own.read(block_ids, slots), "tiers_read", **said)

    def write(self, slots: Sequence[int], block_ids: Sequence[int]) -> None:
        said = {"blocks": list(block_ids), "slots": list(slots)}
        on_all(self._ranks, lambda: self._own.write(slots, block_ids), "tiers_write", **said)


class SharedTier:
    """See `Tier`: what every rank has is there, and changes as the last of them does."""

    def __init__(
        self, own: Tier, place: int, ranks: Sequence[TierRank], before: Sequence[KvEvents]
    ) -> None:
        """place: of this tier in each rank's list. before: what was found in the others'."""
        self.name = own.name
        self._own = own
        self._place = place
        self._ranks = ranks
        self._num_damaged = [0] * len(ranks)
        # Ranks that have a block, and whether all had it when changes were last told.
        self._holders: dict[bytes, int] = {}
        self._before: dict[bytes, bool] = {}
        for changes in before:
            self._apply(changes)

    def lookup(self, hashes: Sequence[bytes]) -> int:
        return self._least(lambda: self._own.lookup(hashes), "lookup", hashes)

    def load(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        return self._least(lambda: self._own.load(hashes, slots), "load", hashes, slots)

    def store(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        return self._least(lambda: self._own.store(hashes, slots), "store", hashes, slots)

    def drain_changes(self) -> KvEvents:
        self._apply(self._own.drain_changes())
        stored = [h for h, before in self._before.items() if not before and self._is_whole(h)]
        removed = [h for h, before in self._before.items() if before and not self._is_whole(h)]
        self._before.clear()
        return KvEvents(stored=tuple(stored), removed=tuple(removed))

    def statistics(self) -> TierStatistics:
        """Bytes of all ranks, as if each had what rank 0 has."""
        own, size = self._own.statistics(), 1 + len(self._ranks)
        return TierStatistics(
            num_blocks=own.num_blocks,
            num_bytes=own.num_bytes * size,
            max_bytes=own.max_bytes * size,
            num_damaged=own.num_damaged + sum(self._num_damaged),
        )

    def close(self) -> None:
        """Here; the others close theirs when they end."""
        self._own.close()

    def _least(
        self,
        own: Callable[[], int],
        call: str,
        hashes: Sequence[bytes],
        slots: Sequence[int] = (),
    ) -> int:
        """The number of blocks for which all ranks can say so."""
        names = [block_hash.hex() for block_hash in hashes]
        count, answers = on_all(
            self._ranks,
            own,
            "tiers_call",
            tier=self._place,
            call=call,
            hashes=names,
            slots=list(slots),
        )
        for index, answer in enumerate(answers):
            count = min(count, answer["count"])
            self._num_damaged[index] = answer["num_damaged"]
            self._apply(changes_from_json(answer["changes"]))
        return count

    def _apply(self, changes: KvEvents) -> None:
        """Of one rank."""
        for block_hash in changes.removed:
            self._add(block_hash, -1)
        for block_hash in changes.stored:
            self._add(block_hash, 1)

    def _add(self, block_hash: bytes, change: int) -> None:
        self._before.setdefault(block_hash, self._is_whole(block_hash))
        count = self._holders.pop(block_hash, 0) + change
        if count:
            self._holders[block_hash] = count

    def _is_whole(self, block_hash: bytes) -> bool:
        return self._holders.get(block_hash, 0) == 1 + len(self._ranks)


def changes_to_json(changes: KvEvents) -> list[list[str]]:
    """What `changes_from_json` reads: removed and stored."""
    return [[h.hex() for h in hashes] for hashes in (changes.removed, changes.stored)]


def changes_from_json(said: Sequence[Sequence[str]]) -> KvEvents:
    """What `changes_to_json` wrote."""
    removed, stored = (tuple(map(bytes.fromhex, names)) for names in said)
    return KvEvents(removed=removed, stored=stored)
