"""LMCache as the tier that all workers share, and the guards without which it gives wrong KV."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.kvtransfer.lmcache_server import (
    BLOCKS,
    Place,
    make_place,
    needs_lmcache,
    running_server,
)

from baton.kvtransfer.lmcache.server import LMCacheServer
from baton.protos.errors import TransferError

pytestmark = needs_lmcache

MakePlace = Callable[..., Place]


@pytest.fixture
def make(lmcache_server: LMCacheServer) -> Iterator[MakePlace]:
    """Tiers of workers that share one server."""
    made: list[Place] = []

    def place(**options: object) -> Place:
        made.append(make_place(lmcache_server.address, **options))  # type: ignore[arg-type]
        return made[-1]

    yield place
    for one in made:
        one.tier.close()


def names(count: int) -> list[bytes]:
    return [os.urandom(16) for _ in range(count)]


def eventually(met: Callable[[], bool], limit_s: float = 100.0) -> None:
    end_s = time.monotonic() + limit_s
    while not met():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_what_one_worker_stored_another_loads_bit_for_bit(make: MakePlace) -> None:
    writer, reader = make(), make()
    hashes = names(9)
    stored = writer.fill(list(range(20, 29)))
    assert writer.tier.store(hashes, range(20, 29)) == 9
    # Any run of them, whatever precedes it: the near part of a prefix may be in nearer tiers.
    for first, end in ((0, 9), (4, 9), (8, 9)):
        assert reader.tier.lookup(hashes[first:end]) == end - first
        assert reader.tier.load(hashes[first:end], range(first, end)) == end - first
    assert torch.equal(reader.memory[:9], stored)
    assert not reader.memory[9:].any()
    assert reader.tier.lookup([*hashes[:3], os.urandom(16), *hashes[3:]]) == 3
    assert reader.tier.load([*hashes[:3], os.urandom(16), hashes[3]], range(4)) == 3
    assert writer.tier.store(hashes, range(20, 29)) == 9
    assert (reader.tier.lookup([]), reader.tier.load([], []), reader.tier.store([], [])) == (0,) * 3


def test_models_dtypes_and_layouts_never_mix(make: MakePlace) -> None:
    writer, hashes = make(), names(2)
    writer.fill([0, 1])
    assert writer.tier.store(hashes, [0, 1]) == 2
    for other in (
        {"model_digest": "other weights"},
        {"layout": replace(BLOCKS, dtype="float16", head_dim=2 * BLOCKS.head_dim)},
        {"layout": replace(BLOCKS, kv_heads=1, block_size=2 * BLOCKS.block_size)},
        {"layout": replace(BLOCKS, total_heads=4, first_head=2, tp_rank=1, tp_size=2)},
        {"layout": replace(BLOCKS, scales=(2.0,) * 6)},
    ):
        stranger = make(**other)
        assert stranger.memory.shape == writer.memory.shape
        assert stranger.tier.lookup(hashes) == 0
        assert stranger.tier.load(hashes, [0, 1]) == 0
        assert not stranger.memory.any()
    assert make().tier.lookup(hashes) == 2


def test_guard_1_an_object_under_another_ones_name_is_a_miss(make: MakePlace) -> None:
    """LMCache names objects by request ids that must never be used twice; were a name ever mixed
    up, in whatever way, the block itself says that it is not the one.
    """
    writer, reader, (right, wrong, torn) = make(), make(), names(3)
    block = writer.fill([0])[0]
    seal = bytearray(writer.tier._seal(right, block))

    def plant(_: int, place: torch.Tensor) -> None:
        place[: len(block)].copy_(block)
        place[len(block) :] = torch.frombuffer(seal, dtype=torch.uint8)

    def plant_torn(_: int, place: torch.Tensor) -> None:
        plant(_, place)
        place[7] ^= 1

    assert writer.tier._client.store(writer.tier._kind, [right, wrong], plant) == 2
    assert reader.tier.lookup([wrong]) == 1
    assert reader.tier.load([wrong], [0]) == 0
    assert reader.tier.load([right, wrong], [0, 1]) == 1
    assert torch.equal(reader.memory[0], block)
    assert writer.tier._client.store(writer.tier._kind, [torn], plant_torn) == 1
    assert reader.tier.load([torn], [0]) == 0
    assert reader.tier.statistics().num_damaged == 3


def test_guard_1_workers_at_once_never_see_each_others_blocks(make: MakePlace) -> None:
    place = make()
    errors: list[str] = []

    def work(first: int) -> None:
        for _ in range(15):
            hashes, slots = names(4), list(range(first, first + 4))
            stored = place.fill(slots)
            count = place.tier.store(hashes, slots)
            place.memory[slots] = 0
            found = place.tier.load(hashes, slots)
            if found != count or not torch.equal(place.memory[slots][:found], stored[:found]):
                errors.append(f"{found} of {count}")

    threads = [threading.Thread(target=work, args=(8 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_guard_2_a_full_server_tells_what_it_took_and_takes_more_later(make: MakePlace) -> None:
    """LMCache's own store says True when nothing was stored. Eight times what fits goes in here."""
    place = make()
    slots = list(range(64))
    place.fill(slots)
    counts, all_names = [], [names(64) for _ in range(4 * (64 << 20) // place.memory.numel())]
    for hashes in all_names:
        counts.append(place.tier.store(hashes, slots))
    # As many as it said, though not always the leading ones, and eviction runs beside.
    assert sum(place.tier.lookup([one]) for one in all_names[-1]) <= counts[-1]
    assert sum(counts) > 0
    eventually(
        lambda: place.tier.store(fresh := names(64), slots) == place.tier.lookup(fresh) == 64
    )


def test_guard_3_what_was_stored_is_there_at_once(make: MakePlace) -> None:
    """LMCache may acknowledge a store before lookups find it: 42 of 60 were missed in its other
    mode of transfer.
    """
    writer, reader = make(), make()
    writer.fill([0, 1])
    found = []
    for _ in range(60):
        hashes = names(2)
        stored = writer.tier.store(hashes, [0, 1])
        found.append(reader.tier.lookup(hashes) - stored)
    assert found == [0] * 60


def test_guard_4_a_killed_server_costs_bounded_time_and_its_successor_works(tmp_path: Path) -> None:
    """LMCache's transport does not tell that a server is gone, and one that was restarted knows
    none of its clients. What it had put into its storage is still there, as for other machines.
    """
    folder = json.dumps({"type": "fs", "base_path": str(tmp_path)})
    with running_server(storage=folder) as server:
        writer, place = make_place(server.address), make_place(server.address, timeout_s=1.0)
        hashes = names(5)
        stored = writer.fill(list(range(5)))
        assert writer.tier.store(hashes, range(5)) == 5
        writer.tier.close()
        eventually(lambda: sum(path.is_file() for path in tmp_path.rglob("*")) >= 5)

        def loads() -> bool:
            with suppress(TransferError):
                return place.tier.load(hashes, range(5)) == 5
            return False

        eventually(loads)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        began_s = time.monotonic()
        for call in (place.tier.lookup, lambda h: place.tier.load(h, range(5))):
            with pytest.raises(TransferError, match="did not answer"):
                call(hashes)
        assert time.monotonic() - began_s < 60
        place.memory[:] = 0
        eventually(loads)
        assert server.num_restarts == 1
        assert torch.equal(place.memory[:5], stored)
        place.tier.close()


def test_guard_4_a_client_of_an_earlier_run_is_told_so(make: MakePlace) -> None:
    place = make()
    place.fill([0])
    assert place.tier.store(names(1), [0]) == 1
    client = place.tier._client
    client._connection = replace(client._connect(), server="an earlier one")
    with pytest.raises(TransferError, match="was restarted"):
        place.tier.lookup(names(1))
    # It has connected to this run by itself.
    assert place.tier.store(names(1), [0]) == 1


def test_guard_4_a_server_that_hangs_costs_bounded_time(make: MakePlace) -> None:
    """And nothing of it is left to stand in the way of others: in a ZMQ context that lingers over
    what it had still to send, no later client gets through.
    """
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        place = make_place(f"tcp://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3)
        began_s = time.monotonic()
        with pytest.raises(TransferError, match="did not answer Hello"):
            place.tier.lookup(names(1))
        assert time.monotonic() - began_s < 60
        place.tier.close()
    assert make().tier.lookup(names(1)) == 0


def test_guard_5_storage_that_is_down_costs_bounded_time_and_memory_works_on() -> None:
    """With a Redis that is down when it starts, LMCache blocks every lookup until the caller gives
    up, while it calls itself healthy.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    redis = json.dumps({"type": "resp", "host": "127.0.0.1", "port": port, "num_workers": 1})
    with running_server(storage=redis) as server:
        place, hashes = make_place(server.address, timeout_s=4.0), names(2)
        stored = place.fill([0, 1])
        began_s = time.monotonic()
        assert place.tier.store(hashes, [0, 1]) == 2
        assert place.tier.lookup(hashes) == 2
        assert place.tier.lookup(names(2)) == 0
        assert place.tier.load([*hashes, *names(1)], [4, 5, 6]) == 2
        place.memory[:] = 0
        assert place.tier.load(hashes, [0, 1]) == 2
        assert torch.equal(place.memory[:2], stored)
        assert time.monotonic() - began_s < 60
        place.tier.close()
