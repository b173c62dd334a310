"""NIXL between real processes: what arrives, and what happens when one of them is killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.kvtransfer.receiver import Receiver
from tests.kvtransfer.sides import Side, eventually

from baton.kvtransfer.connector import PeerKey
from baton.kvtransfer.nixl import NixlConnector
from baton.kvtransfer.wire import ConnectorLimits
from baton.protos.errors import PeerLostError, TransferError

# 6 MiB in all: a hundred pushes of it take long enough to be hit by a kill.
NUM_BLOCKS = 4096


@pytest.fixture(scope="module")
def receivers() -> Iterator[tuple[Receiver, Receiver, Receiver]]:
    """A witness, a victim and its successor: processes that start side by side, once."""
    three = (
        Receiver("witness"),
        Receiver("victim", num_blocks=NUM_BLOCKS),
        Receiver("victim", incarnation="2"),
    )
    yield three
    for one in three:
        one.end()


@pytest.fixture
def sender() -> Iterator[Side]:
    limits = ConnectorLimits(drain_timeout_s=1.0)
    side = Side(NixlConnector, "sender", num_blocks=NUM_BLOCKS, limits=limits)
    yield side
    side.connector.close()
    assert side.connector.statistics().num_in_flight == 0


def test_blocks_and_notices_reach_another_process(
    sender: Side, receivers: tuple[Receiver, Receiver, Receiver]
) -> None:
    other = receivers[0]
    sender.connector.connect(other.info)
    outcomes = [sender.push(other.key, [9, 5, 6], [1, 3, 2], f"r{i}") for i in range(8)]
    assert [outcome.wait() for outcome in outcomes] == [None] * 8
    eventually(lambda: len(other.notices()) == 8)
    assert {key for key, _ in other.notices()} == {sender.key}
    # In any order: notices of several writes may overtake each other, never their own data.
    assert {notice.request_id for _, notice in other.notices()} == {f"r{i}" for i in range(8)}
    assert other.block_bytes([1, 3, 2]) == sender.pool[[9, 5, 6]].numpy().tobytes()


def test_metadata_that_is_not_its_own_is_refused(sender: Side) -> None:
    own = sender.info
    stranger = PeerKey("stranger", "1")
    for metadata, words in (
        (b"", "not that of a NIXL connector"),
        (b"x" * 400, "not that of a NIXL connector"),
        (own.agent_metadata[:40], "connecting to stranger@1"),
        (own.agent_metadata, "connecting to stranger@1|says that it is sender@1"),
    ):
        with pytest.raises(TransferError, match=words):
            sender.connector.connect(replace(own, key=stranger, agent_metadata=metadata))
    assert sender.connector.statistics().num_peers == 0


def test_a_peer_that_stands_still_cannot_hold_connect_or_close(
    receivers: tuple[Receiver, Receiver, Receiver],
) -> None:
    sender = Side(NixlConnector, "hasty", limits=ConnectorLimits(connect_timeout_s=3.0))
    successor = receivers[2]
    with successor.frozen():
        with pytest.raises(PeerLostError, match="did not answer within"):
            sender.connector.connect(successor.info)
        started_s = time.monotonic()
        sender.connector.close()
        assert time.monotonic() - started_s < 60.0  # it is stopped for good: without a limit, never


def test_a_killed_peer_fails_its_pushes_only_and_its_successor_works(
    sender: Side, receivers: tuple[Receiver, Receiver, Receiver]
) -> None:
    witness, victim, successor = receivers
    everything = list(range(NUM_BLOCKS))
    sender.connector.connect(victim.info)
    sender.connector.connect(witness.info)
    doomed = [sender.push(victim.key, everything, everything, f"d{i}") for i in range(100)]
    doomed[0].wait()
    victim.kill()
    lost = [fate for outcome in doomed if (fate := outcome.wait()) is not None]
    assert lost
    assert all(isinstance(fate, PeerLostError) for fate in lost)

    assert isinstance(sender.push(victim.key, [0], [0], "late").wait(), PeerLostError)
    with pytest.raises(PeerLostError):
        sender.connector.connect(victim.info)
    assert sender.push(witness.key, [7], [9], "w").wait() is None
    assert witness.block_bytes([9]) == sender.pool[7].numpy().tobytes()

    sender.connector.connect(successor.info)
    assert sender.push(successor.key, [8], [2], "s").wait() is None
    eventually(lambda: len(successor.notices()) == 1)
    assert successor.block_bytes([2]) == sender.pool[8].numpy().tobytes()
