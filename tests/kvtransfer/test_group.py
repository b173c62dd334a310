"""Workers of several ranks: every rank's heads arrive, and blocks count when all of them have."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from tests.kvtransfer.logical import load, logical_kv, store
from tests.kvtransfer.sides import Outcome, eventually
from tests.kvtransfer.test_unlike import Shape

from baton.kvtransfer.connector import Notice, PeerKey
from baton.kvtransfer.group import GroupConnector, rank_key
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.local import LocalConnector, LocalFabric
from baton.protos.errors import LayoutMismatchError, PeerLostError

NUM_BLOCKS = 16
NUM_TOKENS = 12


class Worker:
    """The pools of all ranks of a worker, and their connectors as one."""

    def __init__(self, name: str, layouts: list[KVLayout], fabric: LocalFabric) -> None:
        self.layouts = layouts
        self.pools = [torch.zeros(NUM_BLOCKS, *layout.block_shape) for layout in layouts]
        self.notices: list[tuple[PeerKey, Notice]] = []
        self.key = PeerKey(name, "1")
        makers = [
            partial(self._make, pool, layout, rank_key(self.key, rank), fabric)
            for rank, (pool, layout) in enumerate(zip(self.pools, layouts, strict=True))
        ]
        self.connector = GroupConnector(
            makers, on_notice=lambda key, notice: self.notices.append((key, notice))
        )

    def _make(self, pool, layout, key, fabric, on_notice):
        return LocalConnector(pool, layout, key, fabric=fabric, on_notice=on_notice)

    def store(self, kv: torch.Tensor, blocks: list[int]) -> None:
        for layout, pool in zip(self.layouts, self.pools, strict=True):
            store(kv, layout, pool, blocks)


def worker_pair(source: int, target: int, total_heads: int) -> tuple[Worker, Worker, LocalFabric]:
    fabric = LocalFabric()
    sender = Worker("s", Shape(source).ranks(total_heads), fabric)
    receiver = Worker("r", Shape(target).ranks(total_heads), fabric)
    return sender, receiver, fabric


def join(sender: Worker, receiver: Worker) -> None:
    sender.connector.connect(receiver.connector.local_info())
    receiver.connector.connect(sender.connector.local_info())


@pytest.mark.parametrize(
    ("source", "target", "total_heads"),
    [
        (1, 1, 4),
        (2, 2, 4),
        (4, 4, 2),
        (1, 2, 4),
        (4, 2, 4),
        (2, 4, 4),
        # Ranks that share heads: who writes to whom is not the same both ways.
        (4, 2, 2),
        (2, 4, 2),
        (1, 4, 1),
        (6, 9, 3),
        (3, 2, 6),
    ],
)
def test_all_heads_arrive_and_are_told_once(source: int, target: int, total_heads: int) -> None:
    sender, receiver, _ = worker_pair(source, target, total_heads)
    join(sender, receiver)
    kv = logical_kv(sender.layouts[0], NUM_TOKENS)
    sender.store(kv, [3, 4, 9])
    outcomes = []
    for first, local, remote in ((0, [3, 4], [7, 2]), (2, [9], [5])):
        outcome = Outcome()
        notice = Notice("r1", 7, first, len(local))
        sender.connector.push(receiver.key, local, remote, notice, outcome)
        outcomes.append(outcome)
    assert [outcome.wait() for outcome in outcomes] == [None, None]

    def blocks() -> list[int]:
        return [
            b
            for _, n in receiver.notices
            for b in range(n.first_block, n.first_block + n.num_blocks)
        ]

    eventually(lambda: len(blocks()) == 3)
    assert sorted(blocks()) == [0, 1, 2]
    assert {(key.agent, n.request_id, n.epoch) for key, n in receiver.notices} == {("s@1", "r1", 7)}
    for layout, pool in zip(receiver.layouts, receiver.pools, strict=True):
        heads = kv[:, :, :, layout.heads.start : layout.heads.stop]
        assert torch.equal(load(layout, pool, [7, 2, 5], NUM_TOKENS), heads)
    assert receiver.connector.statistics().num_peers == 1
    for worker in (sender, receiver):
        worker.connector.close()


def test_one_lost_rank_fails_the_push_and_tells_nothing() -> None:
    sender, receiver, fabric = worker_pair(2, 2, 4)
    join(sender, receiver)
    fabric.cut(rank_key(receiver.key, 1))
    outcome = Outcome()
    sender.connector.push(receiver.key, [1], [1], Notice("r1", 7, 0, 1), outcome)
    assert isinstance(outcome.wait(), PeerLostError)
    assert receiver.notices == []
    sender.connector.disconnect(receiver.key)
    outcome = Outcome()
    sender.connector.push(receiver.key, [1], [1], Notice("r1", 7, 0, 1), outcome)
    assert isinstance(outcome.wait(), PeerLostError)
    for worker in (sender, receiver):
        worker.connector.close()


def test_ranks_that_nobody_would_fill_are_refused() -> None:
    sender, receiver, _ = worker_pair(2, 2, 4)
    half = replace(receiver.connector.local_info(), ranks=())
    with pytest.raises(LayoutMismatchError, match="nobody would write KV head 2, 3 of some"):
        sender.connector.connect(half)
    for worker in (sender, receiver):
        worker.connector.close()
