"""What `baton bench kv` measures: pushes of so many bytes, as blocks of two layouts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from baton.kvtransfer.layout import KVLayout, rank_layout
from baton.kvtransfer.mapping import KVMap, plan_map

POOL_BYTES: Final = 256 << 20
SIZES: Final = (64 << 10, 1 << 20, 8 << 20, 64 << 20)
UNLIKE_BYTES: Final = 8 << 20
QUEUED: Final = 8
# Layers, KV heads and head size of a small model, 1B and 8B; blocks of 16 tokens.
SHAPES: Final = ((4, 4, 64), (16, 8, 64), (32, 8, 128))

BlockLists = list[tuple[list[int], list[int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A sender's layout and a receiver's; `name` says how they differ. Each pool takes
    `pool_bytes`.
    """

    name: str
    source: KVLayout
    target: KVLayout
    pool_bytes: int = POOL_BYTES

    @property
    def kv_map(self) -> KVMap:
        return plan_map(self.source, self.target)

    def num_blocks(self, layout: KVLayout) -> int:
        return max(self.pool_bytes // layout.block_bytes, 1)


@dataclass(frozen=True, slots=True)
class Case:
    """One row: pushes that write so many bytes each, adjacent blocks or any."""

    num_bytes: int
    pair: Pair
    scattered: bool
    num_pushes: int = 1

    @property
    def num_remote(self) -> int:
        """Blocks of the receiver in one push."""
        return max(self.num_bytes // self.pair.kv_map.sent_layout.block_bytes, 1)

    @property
    def num_local(self) -> int:
        """Blocks of the sender in one push."""
        tokens = self.num_remote * self.pair.target.block_size
        return -(-tokens // self.pair.source.block_size)

    def describe(self) -> str:
        order = "scattered" if self.scattered else "adjacent"
        pushes = f"{self.num_pushes} queued pushes of" if self.num_pushes > 1 else "push of"
        block = label(self.pair.kv_map.sent_layout.block_bytes)
        blocks = f"{self.num_remote} {order} blocks of {block}"
        return f"{self.pair.name}: {pushes} {label(self.num_bytes)} as {blocks}"

    def block_lists(self, first: int, rng: random.Random) -> BlockLists:
        """Local and remote blocks of each push; adjacent ones begin at local block `first`."""
        lists: BlockLists = []
        most_local = self.pair.num_blocks(self.pair.source)
        most_remote = self.pair.num_blocks(self.pair.target)
        for number in range(self.num_pushes):
            if self.scattered:
                local = rng.sample(range(most_local), self.num_local)
                remote = rng.sample(range(most_remote), self.num_remote)
            else:
                start = (first + number * self.num_local) % (most_local - self.num_local + 1)
                local = list(range(start, start + self.num_local))
                start %= most_remote - self.num_remote + 1
                remote = list(range(start, start + self.num_remote))
            lists.append((local, remote))
        return lists


def label(num_bytes: int) -> str:
    """In MiB or KiB."""
    return f"{num_bytes >> 20} MiB" if num_bytes >= 1 << 20 else f"{num_bytes >> 10} KiB"


def alike_pairs() -> Iterator[Pair]:
    """Equal layouts of three sizes of models."""
    for layers, heads, head_dim in SHAPES:
        yield alike_pair(layers, heads, head_dim)


def alike_pair(layers: int, heads: int, head_dim: int, *, pool_bytes: int = POOL_BYTES) -> Pair:
    """Two pools of blocks of 16 tokens in bfloat16."""
    layout = KVLayout(
        num_layers=layers, kv_heads=heads, block_size=16, head_dim=head_dim, dtype="bfloat16"
    )
    return Pair(name="alike", source=layout, target=layout, pool_bytes=pool_bytes)


def unlike_pairs() -> Iterator[Pair]:
    """What has to be converted, in the shape of the 8B model."""
    layers, heads, head_dim = SHAPES[-1]
    ranks = {
        size: rank_layout(
            tp_rank=0,
            tp_size=size,
            total_heads=heads,
            num_layers=layers,
            block_size=16,
            head_dim=head_dim,
            dtype="bfloat16",
        )
        for size in (1, 2)
    }
    whole = ranks[1]
    yield Pair(name="1 rank to 2", source=whole, target=ranks[2])
    yield Pair(name="2 ranks to 1", source=ranks[2], target=whole)
    yield Pair(name="blocks of 16 to 32", source=whole, target=replace(whole, block_size=32))
    fp8 = replace(whole, dtype="float8_e4m3fn")
    yield Pair(name="bfloat16 to FP8", source=whole, target=fp8)


def cases(pair: Pair) -> Iterator[Case]:
    """Rows of an alike pair: sizes, adjacent or not, alone or queued."""
    block_bytes = pair.source.block_bytes
    for num_bytes in SIZES:
        if num_bytes < block_bytes:
            continue
        yield Case(num_bytes, pair, scattered=True)
        if num_bytes > block_bytes:
            yield Case(num_bytes, pair, scattered=False)
        if num_bytes <= POOL_BYTES // QUEUED // 2:
            yield Case(num_bytes, pair, scattered=True, num_pushes=QUEUED)
