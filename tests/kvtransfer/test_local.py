"""What only a slow or cut wire shows: ends of pushes that are under way."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch
from tests.kvtransfer.sides import Side

from baton.kvtransfer.local import LocalConnector, LocalFabric
from baton.kvtransfer.wire import ConnectorLimits
from baton.protos.errors import PeerLostError, TransferError

SLOW_S = 0.1
# Until a push was posted: before that a disconnect fails it at once.
POSTED_S = 0.02


@pytest.fixture
def fabric() -> LocalFabric:
    return LocalFabric()


def slow_pair(fabric: LocalFabric, drain_timeout_s: float) -> tuple[Side, Side]:
    limits = ConnectorLimits(drain_timeout_s=drain_timeout_s)
    make = partial(LocalConnector, fabric=fabric)
    sender, receiver = Side(make, "sender", limits=limits), Side(make, "receiver")
    sender.connector.connect(receiver.info)
    fabric.delay_s = SLOW_S
    return sender, receiver


def close(*sides: Side) -> None:
    for side in sides:
        side.connector.close()


def test_done_waits_for_a_write_that_a_disconnect_cannot_stop(fabric: LocalFabric) -> None:
    sender, receiver = slow_pair(fabric, drain_timeout_s=10.0)
    outcome = sender.push(receiver.key, [1], [2], "r")
    time.sleep(POSTED_S)
    sender.connector.disconnect(receiver.key)
    assert not outcome.done
    assert isinstance(outcome.wait(), PeerLostError)
    assert torch.equal(receiver.pool[2], sender.pool[1])
    close(sender, receiver)


def test_a_write_is_cut_off_at_the_drain_deadline(fabric: LocalFabric) -> None:
    sender, receiver = slow_pair(fabric, drain_timeout_s=0.02)
    before = receiver.pool.clone()
    outcome = sender.push(receiver.key, [1], [2], "r")
    time.sleep(POSTED_S)
    sender.connector.disconnect(receiver.key)
    assert isinstance(outcome.wait(), PeerLostError)
    time.sleep(1.5 * SLOW_S)
    assert torch.equal(receiver.pool, before)
    close(sender, receiver)


def test_close_cuts_off_what_does_not_end(fabric: LocalFabric) -> None:
    sender, receiver = slow_pair(fabric, drain_timeout_s=0.02)
    outcomes = [sender.push(receiver.key, [1], [2], "r") for _ in range(20)]
    close(sender)
    assert all(isinstance(outcome.wait(), TransferError) for outcome in outcomes)
    close(receiver)


def test_a_peer_that_dies_during_pushes_fails_them_all(fabric: LocalFabric) -> None:
    sender, receiver = slow_pair(fabric, drain_timeout_s=10.0)
    outcomes = [sender.push(receiver.key, [1], [2], "r") for _ in range(5)]
    fabric.cut(receiver.key)
    assert all(isinstance(outcome.wait(), PeerLostError) for outcome in outcomes)
    assert isinstance(sender.push(receiver.key, [1], [2], "r").wait(), PeerLostError)
    close(sender, receiver)


def test_a_peer_that_never_answers_fails_connect(fabric: LocalFabric) -> None:
    make = partial(LocalConnector, fabric=fabric)
    limits = ConnectorLimits(connect_timeout_s=0.02)
    sender, receiver = Side(make, "sender", limits=limits), Side(make, "receiver")
    fabric.delay_s = 30.0
    with pytest.raises(PeerLostError, match=r"did not answer within 0\.02 s"):
        sender.connector.connect(receiver.info)
    close(sender, receiver)
