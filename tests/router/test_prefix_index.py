from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.protos.hashing import short_hash
from baton.protos.types import KvDigest, KvEvents, Member, Role, WorkerLoad
from baton.router.decision import Chain
from baton.router.prefix_index import PrefixIndex, aligned
from baton.router.view import Columns, WorkerView

CHAIN = [bytes([i]) * 16 for i in range(8)]


def test_hits_stop_where_each_worker_ends() -> None:
    index = PrefixIndex()
    index.apply("a", KvEvents(stored=tuple(CHAIN)))
    index.apply("b", KvEvents(stored=tuple(CHAIN[:3])))
    index.apply("c", KvEvents(stored=tuple(CHAIN[1:])))
    assert index.hits(CHAIN) == {"a": 8, "b": 3}
    assert index.hits(CHAIN[:2]) == {"a": 2, "b": 2}
    assert index.hits([]) == {}
    assert index.hits([os.urandom(16)]) == {}
    index.check_integrity()


def test_a_worker_that_leaves_takes_its_blocks_along() -> None:
    index = PrefixIndex()
    index.apply("a", KvEvents(stored=tuple(CHAIN)))
    index.apply("b", KvEvents(stored=tuple(CHAIN[:1])))
    index.remove_worker("a")
    index.remove_worker("never seen")
    assert index.hits(CHAIN) == {"b": 1}
    index.apply("c", KvEvents(stored=tuple(CHAIN[:2])))
    assert index.hits(CHAIN) == {"b": 1, "c": 2}
    index.remove_worker("b")
    index.remove_worker("c")
    assert not index
    index.check_integrity()


def test_what_is_over_the_limit_is_counted() -> None:
    index = PrefixIndex(max_blocks_per_worker=3)
    index.apply("a", KvEvents(stored=tuple(CHAIN[:2])))
    index.apply("a", KvEvents(stored=tuple(CHAIN)))
    assert index.hits(CHAIN) == {"a": 3}
    assert index.statistics().num_dropped == 5
    index.check_integrity()


def test_hashes_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        PrefixIndex().apply("a", KvEvents(stored=(b"short",)))


_BLOCKS = st.lists(st.sampled_from(CHAIN), max_size=6).map(tuple)
_EVENTS = st.builds(KvEvents, stored=_BLOCKS, removed=_BLOCKS, cleared=st.booleans())


@given(st.lists(st.tuples(st.sampled_from("abc"), _EVENTS | st.none()), max_size=20))
def test_index_equals_a_plain_dict_of_sets(batches: list[tuple[str, KvEvents | None]]) -> None:
    index = PrefixIndex()
    model: dict[str, set[bytes]] = {}
    for worker_id, events in batches:
        if events is None:
            index.remove_worker(worker_id)
            model.pop(worker_id, None)
            continue
        index.apply(worker_id, events)
        blocks = set() if events.cleared else model.get(worker_id, set())
        model[worker_id] = (blocks - set(events.removed)) | set(events.stored)
    for block in CHAIN:
        assert index.hits([block]) == {w: 1 for w, blocks in model.items() if block in blocks}
    for worker_id, blocks in model.items():
        if blocks:
            assert index.digest(worker_id) == digest_of(blocks)
    index.check_integrity()


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, len(CHAIN))), max_size=20))
def test_lengths_of_prefixes_are_exact(lengths: list[tuple[str, int]]) -> None:
    index = PrefixIndex()
    model: dict[str, int] = {}
    for worker_id, length in lengths:
        index.apply(
            worker_id, KvEvents(stored=tuple(CHAIN[:length]), removed=tuple(CHAIN[length:]))
        )
        model[worker_id] = length
    assert index.hits(CHAIN) == {w: length for w, length in model.items() if length}
    pool = Columns(
        WorkerView(
            Member(worker_id=w, incarnation="1", role=Role.DECODE, address="", model="m"),
            WorkerLoad(),
            0.0,
        )
        for w in "hgfedcbax"
    )
    expected = [model.get(worker.member.worker_id, 0) for worker in pool.workers]
    assert aligned(index.held([Chain(1, CHAIN)], [pool]), pool).tolist() == expected


def digest_of(blocks: set[bytes]) -> KvDigest:
    xored = 0
    for block in blocks:
        xored ^= short_hash(block)
    return KvDigest(len(blocks), xored)


def test_workers_that_leave_are_swept_out_bit_by_bit() -> None:
    index = PrefixIndex()
    hashes = tuple(os.urandom(16) for _ in range(70_000))
    index.apply("a", KvEvents(stored=hashes))
    index.apply("b", KvEvents(stored=hashes[:10]))
    index.remove_worker("a")
    assert index.hits(hashes) == {"b": 10}
    assert index.statistics().num_blocks > 10
    # Known anew while the old traces are still there.
    index.apply("a", KvEvents(stored=hashes[:5]))
    assert index.hits(hashes) == {"a": 5, "b": 10}
    for _ in range(10):
        index.apply("b", KvEvents(stored=hashes[:1]))
    assert index.statistics().num_blocks == 10
    index.check_integrity()


def test_a_prefix_of_the_first_workers_is_looked_up_for_the_last() -> None:
    """Sets of many workers are spread into arrays, which must reach workers beyond the set."""
    index = PrefixIndex()
    for number in range(40):
        block = b"first" if number < 6 else b"other"
        index.apply(f"w{number}", KvEvents(stored=(block.ljust(16),)))
    members = [
        Member(worker_id=f"w{i}", incarnation="1", role=Role.DECODE, address="", model="")
        for i in range(40)
    ]
    pool = Columns(WorkerView(member, WorkerLoad(), 0.0) for member in members)
    found = aligned(index.held([Chain(1, [b"first".ljust(16)])], [pool]), pool)
    assert list(found) == [1.0] * 6 + [0.0] * 34
