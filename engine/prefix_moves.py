"""Cached prefixes on their way from one worker's pool to another's, without a request of their own.

The one that has a prefix lends it: its blocks stay until they were read. The one that wants it
borrows blocks to be written to, and keeps what came: from then on its prefix cache has it, and
prompts find it there as if it had been computed here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from baton.engine.block_pool import BlockPool
from baton.engine.handover import Reservation
from baton.protos.errors import OverloadedError, StaleEpochError
from baton.protos.hashing import adapter_salt, block_hashes
from baton.protos.types import GenerateRequest


@dataclass(slots=True)
class _Move:
    """Blocks of one move, and the hashes of all whole blocks of its prompt."""

    epoch: int
    hashes: list[bytes]
    block_ids: list[int]
    num_cached: int


class PrefixMoves:
    """Not thread-safe: the engine's thread owns it. A move is named by whoever began it."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._moves: dict[str, _Move] = {}
        self._epochs = itertools.count(1)

    def __iter__(self) -> Iterator[list[int]]:
        """Each move's block ids."""
        return (move.block_ids for move in self._moves.values())

    def lend(self, move_id: str, request: GenerateRequest) -> tuple[int, ...]:
        """The longest cached prefix of the prompt, block by block; it stays until `release`.

        Raises OverloadedError while a move of that name is under way.
        """
        move = self._begin(move_id, request)
        return tuple(move.block_ids)

    def borrow(self, move_id: str, request: GenerateRequest, headroom: int) -> Reservation | None:
        """Blocks for all of the prompt's whole blocks but those that are cached here, which are
        shared; the last token's block is left out: it is computed. None where fewer than `headroom`
        blocks would be left, or nothing is missing. Lasts until `keep` and `release`.

        Raises OverloadedError while a move of that name is under way.
        """
        move = self._begin(move_id, request)
        missing = len(move.hashes) - move.num_cached
        if not missing or missing + headroom > self._pool.num_available:
            self.release(move_id)
            return None
        move.block_ids += self._pool.allocate(missing)
        return Reservation(
            request_id=move_id,
            epoch=move.epoch,
            block_ids=tuple(move.block_ids),
            num_cached_tokens=move.num_cached * self._block_size,
        )

    def keep(self, move_id: str, epoch: int, num_tokens: int) -> None:
        """The first `num_tokens` tokens were written: lets prompts find their blocks.

        Raises StaleEpochError if that borrowing is over.
        """
        move = self._moves.get(move_id)
        if move is None or move.epoch != epoch:
            raise StaleEpochError(f"the borrowed blocks {epoch} of {move_id} were given back")
        for index in range(move.num_cached, num_tokens // self._block_size):
            self._pool.publish(move.block_ids[index], move.hashes[index])

    def release(self, move_id: str) -> None:
        """Gives the blocks back; those that have no hash are free. Unknown ids are ignored."""
        move = self._moves.pop(move_id, None)
        if move is not None:
            self._pool.release(move.block_ids)

    def _begin(self, move_id: str, request: GenerateRequest) -> _Move:
        if move_id in self._moves:
            raise OverloadedError(f"the move {move_id} is under way", param="request_id")
        tokens = [*request.prompt_token_ids, *request.output_token_ids]
        salt = adapter_salt(request.cache_salt, request.adapter_id)
        hashes = block_hashes(tokens[:-1], self._block_size, salt=salt)
        shared = self._pool.match(hashes)
        self._pool.share(shared)
        move = _Move(next(self._epochs), hashes, shared, len(shared))
        self._moves[move_id] = move
        return move
