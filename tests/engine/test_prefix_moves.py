"""Prefixes that are lent and borrowed: what is found afterwards, and where blocks go."""

from __future__ import annotations

import pytest

from baton.engine.block_pool import BlockPool
from baton.engine.prefix_moves import PrefixMoves
from baton.protos.errors import OverloadedError, StaleEpochError
from baton.protos.types import GenerateRequest, SamplingParams


def prompt(num_tokens: int, salt: bytes = b"") -> GenerateRequest:
    return GenerateRequest(
        request_id="r",
        prompt_token_ids=range(num_tokens),
        sampling=SamplingParams(),
        cache_salt=salt,
    )


def check(pool: BlockPool, moves: PrefixMoves, num_cached: int) -> None:
    pool.check_integrity([*moves])
    assert pool.statistics().num_cached == num_cached


def test_what_came_is_found_and_the_rest_is_free() -> None:
    pool = BlockPool(8)
    moves = PrefixMoves(pool, 4)
    # The last token is computed, so its block is not wanted.
    borrowed = moves.borrow("m", prompt(17), 0)
    assert borrowed is not None
    assert (len(borrowed.block_ids), borrowed.num_cached_tokens) == (4, 0)
    with pytest.raises(OverloadedError):
        moves.lend("m", prompt(17))
    with pytest.raises(StaleEpochError):
        moves.keep("m", borrowed.epoch + 1, 12)
    moves.keep("m", borrowed.epoch, 12)
    moves.release("m")
    check(pool, moves, 3)
    more = moves.borrow("m", prompt(17), 0)
    assert more is not None
    assert more.block_ids[:3] == borrowed.block_ids[:3]
    assert more.num_cached_tokens == 12
    moves.release("m")
    moves.release("m")
    check(pool, moves, 3)
    assert moves.borrow("m", prompt(13), 0) is None
    assert moves.borrow("m", prompt(25), 3) is None
    check(pool, moves, 3)


def test_what_is_lent_is_not_evicted() -> None:
    pool = BlockPool(4)
    moves = PrefixMoves(pool, 4)
    borrowed = moves.borrow("m", prompt(13), 0)
    assert borrowed is not None
    moves.keep("m", borrowed.epoch, 12)
    moves.release("m")
    assert moves.lend("other", prompt(20, salt=b"another")) == ()
    lent = moves.lend("m", prompt(20))
    assert lent == borrowed.block_ids
    assert pool.num_available == 1
    assert moves.borrow("o", prompt(9, salt=b"another"), 0) is None
    moves.release("m")
    moves.release("other")
    check(pool, moves, 3)
