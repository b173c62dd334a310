from __future__ import annotations

from baton.protos.types import KvEvents
from baton.router.prefix_index import PrefixIndex

CHAIN = [i.to_bytes(16, "little") for i in range(1, 101)]


def test_a_prompt_that_was_sent_counts_as_held_until_it_is_settled() -> None:
    index = PrefixIndex(promise_stride=8)
    index.apply("a", KvEvents(stored=tuple(CHAIN[:10])))
    index.promise("r1", ["b", "c"], CHAIN[:50])
    # To within the stride.
    assert index.hits(CHAIN) == {"a": 10, "b": 48, "c": 48}
    assert index.hits(CHAIN[:20]) == {"a": 10, "b": 16, "c": 16}
    index.promise("r2", ["a"], CHAIN[:30])
    assert index.hits(CHAIN) == {"a": 24, "b": 48, "c": 48}
    index.settle("r1")
    index.settle("r1")
    assert index.hits(CHAIN) == {"a": 24}
    index.settle("r2")
    assert index.hits(CHAIN) == {"a": 10}


def test_of_what_is_held_and_what_is_promised_the_longer_counts() -> None:
    index = PrefixIndex(promise_stride=8)
    index.apply("a", KvEvents(stored=tuple(CHAIN[:60])))
    index.promise("r1", ["a", "b"], CHAIN[:50])
    assert index.hits(CHAIN) == {"a": 60, "b": 48}


def test_two_prompts_with_one_beginning_keep_their_promises_apart() -> None:
    index = PrefixIndex(promise_stride=8)
    index.promise("r1", ["a"], CHAIN[:40])
    index.promise("r2", ["a"], [*CHAIN[:16], *CHAIN[60:100]])
    index.settle("r1")
    assert index.hits(CHAIN) == {"a": 16}


def test_a_worker_that_is_gone_keeps_no_promise() -> None:
    index = PrefixIndex(promise_stride=8)
    index.promise("r1", ["a", "b"], CHAIN[:40])
    index.remove_worker("a")
    assert index.hits(CHAIN) == {"b": 40}
    index.apply("c", KvEvents(stored=tuple(CHAIN[:1])))
    assert index.hits(CHAIN) == {"b": 40, "c": 1}
    index.settle("r1")
    assert index.hits(CHAIN) == {"c": 1}
    index.check_integrity()
