"""What every connector promises, run against each that ships.

Both ends are in this process here; `test_nixl_processes.py` has them in two, and kills one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from tests.kvtransfer.lmcache_server import needs_lmcache
from tests.kvtransfer.sides import LAYOUT, NUM_BLOCKS, Make, Outcome, Side, eventually

from baton.kvtransfer.collective import CollectiveConnector
from baton.kvtransfer.connector import Notice, PeerInfo, PeerKey
from baton.kvtransfer.lmcache.channel import LMCacheConnector
from baton.kvtransfer.lmcache.server import LMCacheServer
from baton.kvtransfer.local import LocalConnector, LocalFabric
from baton.kvtransfer.nixl import NixlConnector
from baton.kvtransfer.wire import ConnectorLimits
from baton.protos.errors import ConfigError, LayoutMismatchError, PeerLostError, TransferError

MakeSide = Callable[..., Side]


@pytest.fixture(params=["local", "nixl", "gloo", pytest.param("lmcache", marks=needs_lmcache)])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "local":
        return partial(LocalConnector, fabric=LocalFabric())
    if request.param == "lmcache":
        server: LMCacheServer = request.getfixturevalue("lmcache_server")
        return partial(LMCacheConnector, address=server.address, timeout_s=5.0)
    return NixlConnector if request.param == "nixl" else CollectiveConnector


@pytest.fixture
def side(make: Make) -> Iterator[MakeSide]:
    """Makes sides, and proves on teardown that none has an unfinished push or a failed callback."""
    sides: list[Side] = []

    def make_side(name: str, **options: object) -> Side:
        sides.append(Side(make, name, **options))  # type: ignore[arg-type]
        return sides[-1]

    yield make_side
    for one in sides:
        one.connector.close()
    for one in sides:
        statistics = one.connector.statistics()
        assert statistics.num_in_flight == 0
        assert statistics.num_callback_errors == 0
        assert statistics.num_peers == 0


@pytest.fixture
def pair(side: MakeSide) -> tuple[Side, Side]:
    """A sender that is connected to a receiver, which expects something."""
    sender, receiver = side("sender"), side("receiver")
    sender.connector.connect(receiver.info)
    receiver.connector.expect(1)
    return sender, receiver


def test_blocks_arrive_bit_identical_and_nothing_else_changes(pair: tuple[Side, Side]) -> None:
    sender, receiver = pair
    before = receiver.pool.clone()
    local, remote = [3, 4, 5, 0, 31], [10, 11, 2, 31, 0]
    assert sender.push(receiver.key, local, remote, "r").wait() is None
    eventually(lambda: receiver.notices == [(sender.key, Notice("r", 7, 0, 5))])
    before[remote] = sender.pool[local]
    assert torch.equal(receiver.pool, before)
    statistics = sender.connector.statistics()
    assert (statistics.num_done, statistics.num_bytes) == (1, 5 * LAYOUT.block_bytes)


def test_a_notice_comes_after_its_data(pair: tuple[Side, Side]) -> None:
    sender, receiver = pair
    receiver.watch = [1, 2]
    for number in range(20):
        sender.pool[[8, 9]] = float(number)
        assert sender.push(receiver.key, [8, 9], [1, 2], f"r{number}").wait() is None
        eventually(lambda: len(receiver.notices) == number + 1)  # noqa: B023
        assert torch.all(receiver.seen[number] == number)


def test_many_pushes_from_many_threads_each_end_once(pair: tuple[Side, Side]) -> None:
    sender, receiver = pair
    outcomes: list[Outcome] = []

    def push_each_block(of: int) -> None:
        for block in range(of, NUM_BLOCKS, 4):
            outcomes.append(sender.push(receiver.key, [block], [block], f"b{block}"))

    threads = [threading.Thread(target=push_each_block, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.wait() for outcome in outcomes] == [None] * NUM_BLOCKS
    assert {outcome.thread_name for outcome in outcomes} == {"kv-sender"}
    eventually(lambda: len(receiver.notices) == NUM_BLOCKS)
    assert {notice.request_id for _, notice in receiver.notices} == {
        f"b{block}" for block in range(NUM_BLOCKS)
    }
    assert torch.equal(receiver.pool, sender.pool)


def test_both_directions_at_once(pair: tuple[Side, Side]) -> None:
    sender, receiver = pair
    receiver.connector.connect(sender.info)
    forth = sender.push(receiver.key, [0], [1], "forth")
    back = receiver.push(sender.key, [2], [3], "back")
    assert forth.wait() is None
    assert back.wait() is None
    eventually(lambda: bool(sender.notices and receiver.notices))
    assert torch.equal(receiver.pool[1], sender.pool[0])
    assert torch.equal(sender.pool[3], receiver.pool[2])


def test_bad_block_lists_are_refused(pair: tuple[Side, Side]) -> None:
    sender, receiver = pair
    outcome = Outcome()
    for local, remote, words in (
        ([], [], "at least one"),
        ([1], [1, 2], "1 and 2"),
        ([NUM_BLOCKS], [0], f"blocks 0 to {NUM_BLOCKS - 1}"),
        ([0], [NUM_BLOCKS], f"blocks 0 to {NUM_BLOCKS - 1}"),
        ([-1], [0], "from -1"),
        ([0], [-1], "from -1"),
    ):
        with pytest.raises(TransferError, match=words):
            sender.connector.push(receiver.key, local, remote, Notice("r", 1, 0, 1), outcome)
    assert sender.push(receiver.key, [0], [0], "next").wait() is None
    assert not outcome.done


def test_a_push_to_an_unknown_peer_fails_through_done(side: MakeSide) -> None:
    error = side("sender").push(PeerKey("nobody", "1"), [0], [0], "r").wait()
    assert isinstance(error, PeerLostError)
    assert "nobody@1 is not connected" in error.message


def test_layouts_that_cannot_be_mapped_are_refused_in_words(side: MakeSide) -> None:
    sender = side("sender")
    other = side("receiver", layout=replace(LAYOUT, head_dim=16, num_layers=5))
    with pytest.raises(LayoutMismatchError, match="layers 3 and 5; head size 8 and 16") as caught:
        sender.connector.connect(other.info)
    assert "the receiver has 5 layers of K and V" in caught.value.message


def test_a_pool_that_is_not_its_layout_is_refused(make: Make) -> None:
    pool = torch.zeros(4, *replace(LAYOUT, head_dim=16).block_shape)
    with pytest.raises(ConfigError, match="its layout says float32"):
        make(pool, LAYOUT, PeerKey("w", "1"), on_notice=lambda key, notice: None)


def test_connecting_twice_is_harmless_and_to_oneself_refused(pair: tuple[Side, Side]) -> None:
    sender, receiver = pair
    sender.connector.connect(receiver.info)
    assert sender.connector.statistics().num_peers == 1
    with pytest.raises(TransferError, match="to itself"):
        sender.connector.connect(sender.info)


def test_a_disconnect_is_final_for_the_incarnation_only(side: MakeSide) -> None:
    sender, old = side("sender"), side("receiver", incarnation="1")
    sender.connector.connect(old.info)
    sender.connector.disconnect(old.key)
    error = sender.push(old.key, [0], [0], "r").wait()
    assert isinstance(error, PeerLostError)
    with pytest.raises(PeerLostError, match="receiver@1 was disconnected"):
        sender.connector.connect(old.info)
    old.connector.close()
    new = side("receiver", incarnation="2")
    sender.connector.connect(new.info)
    assert sender.push(new.key, [5], [6], "r").wait() is None
    assert torch.equal(new.pool[6], sender.pool[5])
    sender.connector.disconnect(PeerKey("never-seen", "1"))


def test_one_lost_peer_leaves_the_others_alone(pair: tuple[Side, Side], side: MakeSide) -> None:
    sender, receiver = pair
    other = side("other")
    sender.connector.connect(other.info)
    other.connector.close()
    sender.connector.disconnect(other.key)
    assert isinstance(sender.push(other.key, [0], [0], "r").wait(), PeerLostError)
    assert sender.push(receiver.key, [1], [1], "r").wait() is None


def test_close_ends_every_push_and_refuses_more(pair: tuple[Side, Side]) -> None:
    sender, receiver = pair
    outcomes = [sender.push(receiver.key, [0], [0], f"r{i}") for i in range(50)]
    sender.connector.close()
    assert all(outcome.done and len(outcome.calls) == 1 for outcome in outcomes)
    with pytest.raises(TransferError, match="is closed"):
        sender.push(receiver.key, [0], [0], "late")
    with pytest.raises(TransferError, match="is closed"):
        sender.connector.connect(receiver.info)
    sender.connector.disconnect(receiver.key)
    sender.connector.close()


def test_the_queue_of_pushes_is_bounded(side: MakeSide) -> None:
    sender, receiver = side("sender", limits=ConnectorLimits(max_pushes=1)), side("receiver")
    sender.connector.connect(receiver.info)
    hold = threading.Event()
    held = threading.Event()

    def hold_the_thread(error: TransferError | None) -> None:
        held.set()
        hold.wait(10)

    sender.connector.push(receiver.key, [0], [0], Notice("r", 1, 0, 1), hold_the_thread)
    assert held.wait(10)
    waiting = sender.push(receiver.key, [1], [1], "second")
    with pytest.raises(TransferError, match="1 pushes are unfinished"):
        sender.push(receiver.key, [2], [2], "third")
    hold.set()
    assert waiting.wait() is None


def test_a_callback_that_raises_stops_nothing(
    make: Make, side: MakeSide, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = side("receiver")
    sender = Side(make, "sender")

    def fail(error: TransferError | None) -> None:
        raise ValueError("the owner's bug")

    sender.connector.connect(receiver.info)
    sender.connector.push(receiver.key, [0], [0], Notice("r", 1, 0, 1), fail)
    assert sender.push(receiver.key, [1], [1], "next").wait() is None
    sender.connector.close()
    assert sender.connector.statistics().num_callback_errors == 1
    assert "the owner's bug" in caplog.text


def test_more_ends_than_begins_are_refused(pair: tuple[Side, Side]) -> None:
    _, receiver = pair
    receiver.connector.expect(-1)
    with pytest.raises(TransferError, match="more hand-overs ended than began"):
        receiver.connector.expect(-1)


def test_a_higher_session_replaces_the_connection_and_a_lower_one_is_refused(
    side: MakeSide,
) -> None:
    sender, receiver = side("sender"), side("receiver")
    receiver.connector.expect(1)

    def session(number: int) -> PeerInfo:
        return replace(receiver.info, key=PeerKey("receiver", "1", number))

    sender.connector.connect(session(1))
    assert sender.push(session(1).key, [1], [1], "r1").wait() is None
    for number in (2, 3):
        sender.connector.connect(session(number))
        assert isinstance(
            sender.push(session(number - 1).key, [0], [1], "old").wait(), PeerLostError
        )
        assert sender.push(session(number).key, [number], [number], f"r{number}").wait() is None
        assert torch.equal(receiver.pool[number], sender.pool[number])
    with pytest.raises(PeerLostError, match="connection 1"):
        sender.connector.connect(session(1))
    eventually(lambda: len(receiver.notices) == 3)
    assert {key for key, _ in receiver.notices} == {sender.key}
    assert sender.connector.statistics().num_peers == 1
