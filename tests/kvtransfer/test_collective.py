"""What is special to communicators: they come and go, and both ends must agree to exist."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tests.kvtransfer.receiver import Receiver
from tests.kvtransfer.sides import Side, eventually

from baton.kvtransfer.channel import Channel, Offer
from baton.kvtransfer.collective import CollectiveConnector, CollectiveWire
from baton.kvtransfer.connector import PeerInfo, PeerKey
from baton.kvtransfer.frames import Greeting
from baton.kvtransfer.nixl import NixlConnector
from baton.kvtransfer.wire_connector import WireConnector
from baton.protos.errors import LayoutMismatchError, PeerLostError, TransferError

NUM_BLOCKS = 4096


@pytest.fixture
def sides() -> Iterator[tuple[Side, Side]]:
    both = Side(CollectiveConnector, "sender"), Side(CollectiveConnector, "receiver")
    yield both
    for side in both:
        side.connector.close()


def changed(info: PeerInfo, **values: object) -> PeerInfo:
    metadata = {**json.loads(info.agent_metadata), **values}
    return replace(info, agent_metadata=json.dumps(metadata).encode())


class DeafChannels:
    """The sender's end notices nothing until `wake`, as gloo's within a message; the receiver's
    end breaks.
    """

    name = "deaf"
    advice = ""

    def __init__(self, *, opens: bool) -> None:
        self.wake = threading.Event()
        self._opens = opens

    def offer(self) -> Offer:
        return Offer("", self._open)

    def accept(self, greeting: Greeting) -> Channel:
        if not self._opens:
            raise RuntimeError("the receiver breaks")
        return self

    def send(self, chunks: Iterator[torch.Tensor]) -> None:
        self.wake.wait()

    def receive(self, chunks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        raise RuntimeError("the receiver breaks")

    def _open(self) -> Channel:
        if not self._opens:
            self.wake.wait()
        return self


def test_a_communicator_is_dropped_when_idle_and_made_anew_for_the_next_write() -> None:
    wires: list[CollectiveWire] = []

    def make(pool, layout, key, *, on_notice, limits=None):  # type: ignore[no-untyped-def]
        wires.append(CollectiveWire(pool, layout, key, host="127.0.0.1", idle_s=0.05))
        return WireConnector(wires[-1], on_notice=on_notice, limits=limits)

    sender, receiver = Side(make, "sender"), Side(make, "receiver")
    sender.connector.connect(receiver.info)
    for round_ in range(2):
        assert sender.push(receiver.key, [1, 2], [5, 9], f"r{round_}").wait() is None
        eventually(lambda: wires[0].num_communicators == 0)
    assert receiver.pool[[5, 9]].equal(sender.pool[[1, 2]])
    assert len(receiver.notices) == 2
    sender.connector.close()
    receiver.connector.close()


def test_who_lacks_the_token_is_not_served(sides: tuple[Side, Side]) -> None:
    sender, receiver = sides
    with pytest.raises(PeerLostError, match="the receiver ended the link"):
        sender.connector.connect(changed(receiver.info, token="guessed"))


def test_a_gpu_and_a_cpu_pool_are_refused_in_words(sides: tuple[Side, Side]) -> None:
    sender, receiver = sides
    with pytest.raises(LayoutMismatchError, match=r"moves by gloo and that of receiver@1 by nccl"):
        sender.connector.connect(changed(receiver.info, backend="nccl"))


def test_metadata_of_another_connector_is_refused(sides: tuple[Side, Side]) -> None:
    sender, _ = sides
    other = Side(NixlConnector, "other")
    with pytest.raises(TransferError, match="not that of a collective connector"):
        sender.connector.connect(other.info)
    other.connector.close()


@pytest.mark.parametrize("opens", [True, False])
def test_a_lost_receiver_is_noticed_while_the_channel_notices_nothing(opens: bool) -> None:
    channels = DeafChannels(opens=opens)

    def make(pool, layout, key, *, on_notice, limits=None):  # type: ignore[no-untyped-def]
        wire = CollectiveWire(pool, layout, key, host="127.0.0.1", channels=channels)
        return WireConnector(wire, on_notice=on_notice, limits=limits)

    sender, receiver = Side(make, "sender"), Side(make, "receiver")
    try:
        if opens:
            sender.connector.connect(receiver.info)
            for outcome in [sender.push(receiver.key, [i], [i], "r") for i in range(3)]:
                assert isinstance(outcome.wait(), PeerLostError)
        with pytest.raises(PeerLostError, match="the receiver ended the link"):
            sender.connector.connect(receiver.info)
        assert sender.connector.statistics().num_in_flight == 0
    finally:
        sender.connector.close()
        receiver.connector.close()
        channels.wake.set()


def test_a_killed_peer_fails_its_pushes_and_its_successor_works(sides: tuple[Side, Side]) -> None:
    sender = Side(CollectiveConnector, "busy", num_blocks=NUM_BLOCKS)
    victim = Receiver("victim", num_blocks=NUM_BLOCKS, connector=CollectiveConnector)
    successor = Receiver("victim", incarnation="2", connector=CollectiveConnector)
    try:
        everything = list(range(NUM_BLOCKS))
        sender.connector.connect(victim.info)
        doomed = [sender.push(victim.key, everything, everything, f"d{i}") for i in range(100)]
        assert doomed[0].wait() is None
        victim.kill()
        doomed.append(sender.push(victim.key, [1], [1], "late"))
        lost = [fate for outcome in doomed if (fate := outcome.wait()) is not None]
        assert lost
        assert all(isinstance(fate, PeerLostError) for fate in lost)
        sender.connector.connect(successor.info)
        assert sender.push(successor.key, [8], [2], "s").wait() is None
        assert successor.block_bytes([2]) == sender.pool[8].numpy().tobytes()
    finally:
        sender.connector.close()
        for one in (victim, successor):
            one.end()


def test_a_lost_link_is_replaced_by_the_next_session(sides: tuple[Side, Side]) -> None:
    sender, receiver = sides
    first, second = (replace(receiver.info, key=PeerKey("receiver", "1", n)) for n in (1, 2))
    sender.connector.connect(first)
    sender.connector.disconnect(first.key)
    sender.connector.connect(second)
    assert isinstance(sender.push(first.key, [1], [1], "old").wait(), PeerLostError)
    assert sender.push(second.key, [1], [1], "new").wait() is None
    assert receiver.pool[1].equal(sender.pool[1])
