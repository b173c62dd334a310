from __future__ import annotations

import random

from baton.protos.hashing import HASH_BYTES
from baton.simulator.cache import KvMemory
from baton.simulator.sequence import Sequence


def hashes(*names: int) -> tuple[bytes, ...]:
    return tuple(name.to_bytes(HASH_BYTES, "little") for name in names)


def sequence(num_tokens: int, names: tuple[int, ...]) -> Sequence:
    return Sequence((0, 0), num_tokens, 1, hashes(*names))


def compute(memory: KvMemory, num_tokens: int, names: tuple[int, ...]) -> Sequence:
    made = sequence(num_tokens, names)
    assert made.take(memory, 0)
    made.num_computed = num_tokens
    made.publish(memory)
    return made


def test_a_prefix_is_shared_and_the_last_token_is_computed() -> None:
    memory = KvMemory(100, 10)
    first = compute(memory, 30, (1, 2, 3))
    assert memory.available_tokens == 70
    second = sequence(30, (1, 2, 3))
    assert second.take(memory, 0)
    assert second.num_cached == 20
    assert memory.available_tokens == 60
    first.free(memory)
    second.free(memory)
    assert memory.available_tokens == 100
    memory.check_integrity()


def test_the_least_recently_used_tail_goes_first() -> None:
    memory = KvMemory(60, 10)
    compute(memory, 30, (1, 2, 3)).free(memory)
    compute(memory, 20, (4, 5)).free(memory)
    memory.drain_events()
    assert sequence(25, ()).take(memory, 0)
    events = memory.drain_events()
    assert events is not None
    assert set(events.removed) == set(hashes(2, 3))
    memory.check_integrity()


def test_events_tell_what_can_be_found() -> None:
    rng = random.Random(1)
    memory = KvMemory(500, 10)
    known: set[bytes] = set()
    held: list[Sequence] = []
    for _ in range(400):
        start = rng.randrange(20)
        names = tuple(100 * start + i for i in range(rng.randint(1, 8)))
        made = sequence(10 * len(names) + rng.randint(1, 9), names)
        if made.take(memory, 0):
            made.num_computed = made.num_tokens
            made.publish(memory)
            held.append(made)
        while held and (len(held) > 5 or memory.available_tokens < 100):
            held.pop(rng.randrange(len(held))).free(memory)
        events = memory.drain_events()
        if events is not None:
            known -= set(events.removed)
            known |= set(events.stored)
        memory.check_integrity()
        for block_hash in known:
            assert memory.match((block_hash,)) == 1


def test_what_another_worker_brings_is_cached_as_far_as_there_is_room() -> None:
    memory = KvMemory(50, 10)
    compute(memory, 20, (1, 2)).free(memory)
    memory.bring(hashes(1, 2, 3, 4))
    assert memory.match(hashes(1, 2, 3, 4)) == 4
    assert memory.available_tokens == 50
    memory.bring(hashes(*range(10, 20)))
    assert memory.match(hashes(10)) == 0
    memory.check_integrity()
