"""What a handover between workers needs from an engine: reservations, and blocks out of use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from baton.engine.request import Request
from baton.protos.errors import OverloadedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Blocks for a prompt whose KV another worker writes.

    `block_ids` cover every known token. The first `num_cached_tokens` tokens (whole blocks, never
    all of them) are here already and their blocks are shared with other requests: they must not be
    written. `epoch` is unique in this engine and grows: whoever names another one is too late.
    """

    request_id: str
    epoch: int
    block_ids: tuple[int, ...]
    num_cached_tokens: int

    @classmethod
    def of(cls, request: Request) -> Reservation:
        """Of a request that has its blocks."""
        return cls(
            request_id=request.request_id,
            epoch=request.epoch,
            block_ids=tuple(request.block_ids),
            num_cached_tokens=request.num_cached_tokens,
        )


class Quarantine:
    """Blocks of aborted requests that a peer may still be reading or writing.

    Several of one request can be here at once: it may have been tried with one peer after another.
    """

    def __init__(self) -> None:
        self._held: dict[str, list[tuple[int, list[int]]]] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held

    def __iter__(self) -> Iterator[list[int]]:
        """Each aborted request's block ids."""
        return (block_ids for held in self._held.values() for _, block_ids in held)

    def check_free(self, request_id: str) -> None:
        """Raises OverloadedError while blocks of that id are here."""
        if request_id in self:
            raise OverloadedError(
                f"blocks of an earlier request {request_id} are still being sent",
                param="request_id",
            )

    def add(self, request_id: str, epoch: int, block_ids: list[int]) -> None:
        self._held.setdefault(request_id, []).append((epoch, block_ids))

    def take(self, request_id: str, epoch: int | None) -> list[list[int]]:
        """Ends the quarantine of that epoch, or of every epoch: the block ids, to be released."""
        held = self._held.pop(request_id, [])
        kept = [entry for entry in held if epoch is not None and entry[0] != epoch]
        if kept:
            self._held[request_id] = kept
        return [block_ids for entry_epoch, block_ids in held if epoch in (None, entry_epoch)]
