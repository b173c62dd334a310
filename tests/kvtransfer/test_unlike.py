"""KV between unlike pools: every rank to every rank, any block size, any dtype, through pushes."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kvtransfer.logical import load, logical_kv, store
from tests.kvtransfer.sides import Make, Outcome, Side, eventually

from baton.kvtransfer.collective import CollectiveConnector
from baton.kvtransfer.layout import KVLayout, rank_layout
from baton.kvtransfer.local import LocalConnector, LocalFabric
from baton.kvtransfer.mapping import heads_to_send, plan_map, sending_ranks
from baton.kvtransfer.nixl import NixlConnector
from baton.kvtransfer.session import ReceiveSession, SendSession
from baton.kvtransfer.wire import ConnectorLimits
from baton.protos.errors import ConfigError, LayoutMismatchError

POOL_BLOCKS = 24


@dataclass(frozen=True)
class Shape:
    """How one kind of worker keeps KV."""

    tp_size: int = 1
    block_size: int = 4
    dtype: str = "float32"
    scales: tuple[float, ...] = ()

    def ranks(self, total_heads: int, planes: int = 2) -> list[KVLayout]:
        return [
            rank_layout(
                tp_rank=rank,
                tp_size=self.tp_size,
                total_heads=total_heads,
                num_layers=2,
                block_size=self.block_size,
                head_dim=4,
                dtype=self.dtype,
                planes=planes,
                scales=self.scales,
            )
            for rank in range(self.tp_size)
        ]


@dataclass
class Transfer:
    """One request moved from all ranks of a worker to all ranks of another."""

    source: list[KVLayout]
    target: list[KVLayout]
    make: Make
    num_tokens: int = 21
    first_block: int = 0

    def run(self, *, chunks: tuple[int, ...] = (), staging_bytes: int = 1 << 20) -> torch.Tensor:
        """The KV that was meant; the target's pools are compared with it."""
        kv = logical_kv(self.source[0], self.num_tokens)
        limits = ConnectorLimits(staging_bytes=staging_bytes)
        senders = [self._side("s", layout, limits) for layout in self.source]
        receivers = [self._side("r", layout, limits) for layout in self.target]
        try:
            for layout, receiver in zip(self.target, receivers, strict=True):
                self._fill(kv, layout, receiver, senders, chunks)
                self._check(kv, layout, receiver)
        finally:
            for side in (*senders, *receivers):
                side.connector.close()
        return kv

    def _side(self, name: str, layout: KVLayout, limits: ConnectorLimits) -> Side:
        return Side(
            self.make,
            f"{name}{layout.tp_rank}",
            layout=layout,
            num_blocks=POOL_BLOCKS,
            limits=limits,
        )

    def _fill(
        self,
        kv: torch.Tensor,
        layout: KVLayout,
        receiver: Side,
        senders: list[Side],
        chunks: tuple[int, ...],
    ) -> None:
        ranks = sending_ranks(layout, tp_size=len(self.source))
        remote = self.blocks(layout, 1)
        reception = ReceiveSession(
            "r",
            epoch=3,
            first_block=self.first_block,
            num_blocks=len(remote),
            num_senders=len(ranks),
        )
        reception.first_token()
        outcomes = []
        for number in ranks:
            sender = senders[number]
            sender.connector.connect(receiver.info)
            outcomes += self._send(kv, sender, receiver, layout, chunks)
        assert [outcome.wait() for outcome in outcomes] == [None] * len(outcomes)

        def proved() -> bool:
            for key, notice in receiver.notices:
                reception.prove(notice, sender=ranks.index(int(key.worker_id[1:])))
            return reception.complete

        eventually(proved)

    def _send(
        self,
        kv: torch.Tensor,
        sender: Side,
        receiver: Side,
        layout: KVLayout,
        chunks: tuple[int, ...],
    ) -> list[Outcome]:
        source = self.source[int(sender.key.worker_id[1:])]
        local = self.blocks(source, 2)
        store(kv, source, sender.pool, local)
        session = SendSession(
            "r",
            num_tokens=self.num_tokens,
            block_size=source.block_size,
            target_block_size=layout.block_size,
        )
        session.reserved(3, self.blocks(layout, 1), first_block=self.first_block)
        outcomes = []
        for computed in (*chunks, self.num_tokens):
            session.advance(computed, local[: source.num_blocks_for(computed)])
            if (span := session.next_push()) is not None:
                outcomes.append(Outcome())
                sender.connector.push(
                    receiver.key,
                    span.local_blocks,
                    span.remote_blocks,
                    span.notice,
                    outcomes[-1],
                    skip_tokens=span.skip_tokens,
                )
        return outcomes

    def _check(self, kv: torch.Tensor, layout: KVLayout, receiver: Side) -> None:
        found = load(layout, receiver.pool, self.blocks(layout, 1), self.num_tokens)
        wanted = kv[:, :, :, layout.heads.start : layout.heads.stop]
        known = self.first_block * layout.block_size
        if layout.dtype == "float8_e4m3fn":
            torch.testing.assert_close(found[known:], wanted[known:], rtol=0.07, atol=0.02)
        elif "float32" in {layout.dtype} & {self.source[0].dtype}:
            assert torch.equal(found[known:], wanted[known:])
        else:
            torch.testing.assert_close(found[known:], wanted[known:], rtol=0.01, atol=0.01)

    def blocks(self, layout: KVLayout, seed: int) -> list[int]:
        """Anywhere in the pool, in any order."""
        count = layout.num_blocks_for(self.num_tokens)
        return random.Random(seed).sample(range(POOL_BLOCKS), count)


@pytest.fixture(params=["local", "nixl", "gloo"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "local":
        return partial(LocalConnector, fabric=LocalFabric())
    return NixlConnector if request.param == "nixl" else CollectiveConnector


PAIRS = [
    (Shape(), Shape(tp_size=2)),
    (Shape(tp_size=2), Shape()),
    (Shape(tp_size=4), Shape(tp_size=2)),
    (Shape(), Shape(block_size=8)),
    (Shape(block_size=8), Shape(block_size=3)),
    (Shape(tp_size=4, block_size=2), Shape(tp_size=2, block_size=16)),
    (Shape(), Shape(dtype="bfloat16")),
    (Shape(dtype="bfloat16"), Shape(dtype="float8_e4m3fn", scales=(0.02, 0.01, 0.015, 0.03))),
    (Shape(tp_size=2, dtype="bfloat16"), Shape(block_size=8, dtype="float16")),
]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_request_arrives_in_the_receivers_own_format(
    make: Make, source: Shape, target: Shape
) -> None:
    Transfer(source.ranks(4), target.ranks(4), make).run(chunks=(5, 13))


@pytest.mark.parametrize("first_block", [1, 3])
def test_only_what_the_receiver_lacks_is_written(make: Make, first_block: int) -> None:
    source, target = Shape(block_size=8).ranks(2), Shape(tp_size=2, block_size=4).ranks(2)
    Transfer(source, target, make, first_block=first_block).run(chunks=(9,))


@pytest.mark.parametrize("planes", [1, 2])
def test_replicated_heads_are_sent_once(make: Make, planes: int) -> None:
    for source, target in itertools.product((1, 2, 4), repeat=2):
        layouts = Shape(tp_size=source).ranks(1, planes), Shape(tp_size=target).ranks(1, planes)
        Transfer(*layouts, make, num_tokens=5).run()


def test_a_small_staging_buffer_carries_a_large_push(make: Make) -> None:
    source, target = Shape(tp_size=2).ranks(4), Shape(block_size=8).ranks(4)
    staging_bytes = 4 * max(512, target[0].block_bytes)
    Transfer(source, target, make, num_tokens=40).run(staging_bytes=staging_bytes)


def test_a_block_larger_than_the_staging_buffer_is_refused_by_name() -> None:
    layouts = Shape().ranks(4), Shape(block_size=64).ranks(4)
    local = partial(LocalConnector, fabric=LocalFabric())
    with pytest.raises(LayoutMismatchError, match="raise staging_bytes to at least"):
        Transfer(*layouts, local).run(staging_bytes=2048)


def test_values_beyond_fp8_are_clamped_and_never_nan() -> None:
    source = Shape().ranks(1)[0]
    target = replace(source, dtype="float8_e4m3fn")
    sides = [
        Side(partial(LocalConnector, fabric=fabric), name, layout=layout)
        for fabric in [LocalFabric()]
        for name, layout in (("s", source), ("r", target))
    ]
    sides[0].pool[0] = 1e6
    sides[0].connector.connect(sides[1].info)
    assert sides[0].push(sides[1].key, [0], [1], "x").wait() is None
    assert torch.all(sides[1].pool[1].float() == 448.0)
    for side in sides:
        side.connector.close()


@settings(max_examples=200, deadline=None)
@given(
    heads=st.sampled_from([1, 2, 4, 8, 16]),
    source_tp=st.sampled_from([1, 2, 4, 8]),
    target_tp=st.sampled_from([1, 2, 4, 8]),
)
def test_each_head_comes_from_exactly_one_rank(heads: int, source_tp: int, target_tp: int) -> None:
    source, target = Shape(source_tp).ranks(heads), Shape(target_tp).ranks(heads)
    for receiver in target:
        sent = [head for sender in source for head in heads_to_send(sender, receiver)]
        assert sorted(sent) == list(receiver.heads)
        ranks = sending_ranks(receiver, tp_size=source_tp)
        assert ranks == tuple(s.tp_rank for s in source if heads_to_send(s, receiver))


def test_what_cannot_be_mapped_names_both_sides() -> None:
    one = Shape().ranks(4)[0]
    for other, words in (
        (replace(one, num_layers=3, scales=()), "layers 2 and 3"),
        (replace(one, head_dim=8), "head size 4 and 8"),
        (replace(one, planes=1), "planes 2 and 1"),
        (Shape().ranks(2)[0], "KV heads of the model 4 and 2"),
    ):
        with pytest.raises(LayoutMismatchError, match=words) as caught:
            plan_map(one, other)
        assert one.describe() in caught.value.message
        assert other.describe() in caught.value.message
    first, last = Shape(tp_size=2).ranks(4)[0], Shape(tp_size=4).ranks(4)[3]
    with pytest.raises(LayoutMismatchError, match="no KV head"):
        plan_map(first, last)
    with pytest.raises(ConfigError, match="tp_size is 3"):
        Shape(tp_size=3).ranks(4)
