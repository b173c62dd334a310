"""The block pool against a model of it, and its rules one by one."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton.engine.block_pool import BlockPool
from baton.protos.errors import BatonError
from baton.protos.hashing import block_hashes

NUM_BLOCKS = 12


def chain(*tokens: int) -> list[bytes]:
    return block_hashes(tokens, 1)


class BlockPoolMachine(RuleBasedStateMachine):
    """Holders take prefixes and new blocks, publish them, and let go, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        # What should be true, said plainly: holders' (blocks, chain), findable hash -> block.
        self.holders: list[tuple[list[int], list[bytes]]] = []
        self.published: dict[bytes, int] = {}
        self.seen_by_router: set[bytes] = set()

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def take(self, tokens: list[int]) -> None:
        hashes = chain(*tokens)
        shared = self.pool.match(hashes)
        expected = []
        for block_hash in hashes:
            if block_hash not in self.published:
                break
            expected.append(self.published[block_hash])
        assert shared == expected
        wanted = len(hashes) - len(shared)
        if wanted > self.pool.num_available - self.pool.num_unreferenced(shared):
            return
        self.pool.share(shared)
        before = self._findable()
        new = self.pool.allocate(wanted)
        in_use = {block_id for blocks, _ in self.holders for block_id in blocks} | set(shared)
        assert not in_use & set(new), "a block in use was handed out"
        assert len(set(new)) == wanted
        for block_hash in before - self._findable():
            assert self.published.pop(block_hash) in new, "more was evicted than needed"
        self.holders.append((shared + new, hashes))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        blocks, hashes = data.draw(st.sampled_from(self.holders))
        for block_id, block_hash in zip(blocks, hashes, strict=True):
            self.published.setdefault(block_hash, block_id)
            self.pool.publish(block_id, block_hash)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        blocks, _ = self.holders.pop(index)
        self.pool.release(blocks)

    @rule()
    def drain(self) -> None:
        events = self.pool.drain_events()
        assert not set(events.stored) & set(events.removed)
        assert set(events.removed) <= self.seen_by_router
        self.seen_by_router -= set(events.removed)
        self.seen_by_router |= set(events.stored)
        assert self.seen_by_router == self.published.keys()
        assert not self.pool.drain_events()

    @invariant()
    def conserved(self) -> None:
        self.pool.check_integrity([blocks for blocks, _ in self.holders])
        statistics = self.pool.statistics()
        in_use = {block_id for blocks, _ in self.holders for block_id in blocks}
        assert statistics.num_in_use == len(in_use)
        assert statistics.num_free + statistics.num_cached + len(in_use) == NUM_BLOCKS
        assert self._findable() == self.published.keys()

    def _findable(self) -> set[bytes]:
        return set(self.pool.snapshot().stored)


TestBlockPoolMachine = BlockPoolMachine.TestCase
TestBlockPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_releasing_twice_is_refused():
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(BatonError, match="nobody refers to it"):
        pool.release(blocks)


def test_allocating_more_than_there_is_takes_nothing():
    pool = BlockPool(2)
    with pytest.raises(BatonError, match="3 KV blocks wanted, but only 2"):
        pool.allocate(3)
    assert pool.num_available == 2


def test_a_chain_is_evicted_from_its_tail_and_the_least_recently_used_first():
    pool = BlockPool(6)
    old, new = chain(1, 2, 3), chain(7, 8, 9)
    for hashes in (old, new):
        blocks = pool.allocate(3)
        for block_id, block_hash in zip(blocks, hashes, strict=True):
            pool.publish(block_id, block_hash)
        pool.release(blocks)
    pool.allocate(2)
    assert len(pool.match(old)) == 1
    assert len(pool.match(new)) == 3
    assert set(pool.drain_events().stored) == {old[0], *new}


def test_taking_up_a_cached_block_saves_it_from_eviction():
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.publish(blocks[0], chain(1)[0])
    pool.release(blocks)
    pool.share(pool.match(chain(1)))
    pool.allocate(1)
    assert pool.num_available == 0
    assert pool.match(chain(1)) == blocks


def test_the_second_copy_of_a_content_is_not_found_and_becomes_free_at_once():
    pool = BlockPool(3)
    first, second = pool.allocate(1), pool.allocate(1)
    pool.publish(first[0], chain(5)[0])
    pool.publish(second[0], chain(5)[0])
    assert pool.match(chain(5)) == first
    pool.release(second)
    assert pool.statistics().num_cached == 0
    pool.check_integrity([first])


def test_without_a_prefix_cache_nothing_is_found_or_reported():
    pool = BlockPool(2, prefix_cache=False)
    blocks = pool.allocate(1)
    pool.publish(blocks[0], chain(1)[0])
    pool.release(blocks)
    assert pool.match(chain(1)) == []
    assert not pool.drain_events()
    assert pool.snapshot().stored == ()


def test_events_of_one_drain_are_net():
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.publish(blocks[0], chain(1)[0])
    pool.release(blocks)
    blocks = pool.allocate(1)
    assert not pool.drain_events(), "stored and evicted in between"
    pool.publish(blocks[0], chain(2)[0])
    pool.release(blocks)
    assert pool.drain_events().stored == tuple(chain(2))
    blocks = pool.allocate(1)
    pool.publish(blocks[0], chain(2)[0])
    assert not pool.drain_events(), "evicted and stored again in between"


def test_integrity_names_the_block_that_is_wrong():
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    with pytest.raises(BatonError, match=f"block {blocks[1]} has 1 references, but 0 holders"):
        pool.check_integrity([blocks[:1]])
