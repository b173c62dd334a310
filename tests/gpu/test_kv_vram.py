"""KV pools in GPU memory: what arrives in another process, and what a kill does."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from tests.kvtransfer.receiver import Receiver
from tests.kvtransfer.sides import Side, eventually

from baton.kvtransfer.nixl import NixlConnector
from baton.protos.errors import PeerLostError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
pytest.importorskip("nixl_cu13")

NUM_BLOCKS = 4096


@pytest.fixture
def receivers() -> Iterator[tuple[Receiver, Receiver]]:
    two = (
        Receiver("witness", device="cuda"),
        Receiver("victim", num_blocks=NUM_BLOCKS, device="cuda"),
    )
    yield two
    for one in two:
        one.end()


def test_blocks_reach_another_process_and_a_kill_hits_one_peer_only(
    receivers: tuple[Receiver, Receiver],
) -> None:
    witness, victim = receivers
    sender = Side(NixlConnector, "sender", num_blocks=NUM_BLOCKS, device="cuda")
    for one in receivers:
        sender.connector.connect(one.info)
    outcomes = [sender.push(witness.key, [9, 5, 6], [1, 3, 2], f"r{i}") for i in range(8)]
    assert [outcome.wait() for outcome in outcomes] == [None] * 8
    eventually(lambda: len(witness.notices()) == 8)
    assert witness.block_bytes([1, 3, 2]) == sender.pool[[9, 5, 6]].cpu().numpy().tobytes()

    everything = list(range(NUM_BLOCKS))
    doomed = [sender.push(victim.key, everything, everything, f"d{i}") for i in range(100)]
    doomed[0].wait()
    victim.kill()
    killed_s = time.monotonic()
    for outcome in doomed:
        fate = outcome.wait()
        assert fate is None or isinstance(fate, PeerLostError)
    # A copy through CUDA IPC may still succeed after the peer died; the wire says so soon.
    while (late := sender.push(victim.key, [0], [0], "late").wait()) is None:
        assert time.monotonic() - killed_s < 5.0
    assert isinstance(late, PeerLostError)
    assert sender.push(witness.key, [7], [9], "w").wait() is None
    assert witness.block_bytes([9]) == sender.pool[7].cpu().numpy().tobytes()
    sender.connector.close()
