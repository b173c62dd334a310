"""How blocks of one pool become blocks of an unlike one: pure plans, no tensors.

A sender writes into the *receiver's* layout. It sends those heads that both pools hold; where
tensor-parallel ranks of the sender hold the same head (more ranks than KV heads), exactly one of
them sends it to a given receiver. Whatever else differs - block size, dtype, scales - is converted
at the sender, in a bounded buffer, so a receiver's pool never holds anything but its own format.

The rules of vLLM's NIXL connector (tensor-parallel sizes that divide each other, no smaller blocks
at the receiver, equal dtypes) were the list of what to go beyond.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from baton.kvtransfer.layout import KVLayout, rank_layout
from baton.protos.errors import LayoutMismatchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """`count` runs of `run_bytes` bytes; run i begins `offset + i * stride` bytes into a memory."""

    offset: int
    run_bytes: int
    stride: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KVMap:
    """What one sender's pool gives to one receiver's pool.

    `heads` are the model's heads that travel. With `alike`, whole blocks are copied as they are;
    otherwise blocks are converted to `[num_layers, planes, len(heads), block_size, head_dim]` of
    the receiver's dtype and block size first.
    """

    source: KVLayout
    target: KVLayout
    heads: range

    @property
    def alike(self) -> bool:
        return _format(self.source) == _format(self.target) and self.covers_target

    @property
    def covers_target(self) -> bool:
        """Whole blocks of the receiver are written, rather than some of their heads."""
        return self.heads == self.target.heads

    @property
    def sent_layout(self) -> KVLayout:
        """The receiver's layout with only the heads that travel: what the conversion makes."""
        return replace(self.target, first_head=self.heads.start, kv_heads=len(self.heads))

    @property
    def runs_per_block(self) -> int:
        """Contiguous runs that the sent heads of one receiver's block are."""
        return 1 if self.covers_target else self.target.num_layers * self.target.planes

    def remote_grid(self, num_blocks: int) -> Grid:
        """Where the sent heads lie in the receiver's pool of `num_blocks` blocks."""
        runs = self.runs_per_block
        first = self.heads.start - self.target.first_head
        return Grid(
            offset=first * self.target.head_bytes,
            run_bytes=self.sent_layout.block_bytes // runs,
            stride=self.target.block_bytes // runs,
            count=num_blocks * runs,
        )


def plan_map(source: KVLayout, target: KVLayout) -> KVMap:
    """How to write from a `source` pool into a `target` pool.

    Raises LayoutMismatchError that describes both sides if their KV is not of the same kind, or if
    nothing of it is to be sent between these two ranks.
    """
    differences = [
        f"{name} {mine} and {theirs}"
        for name, mine, theirs in (
            ("layers", source.num_layers, target.num_layers),
            ("planes", source.planes, target.planes),
            ("head size", source.head_dim, target.head_dim),
            ("KV heads of the model", source.num_model_heads, target.num_model_heads),
        )
        if mine != theirs
    ]
    heads = heads_to_send(source, target)
    if not differences and not heads:
        differences = ["no KV head that the one holds is the other's to receive from it"]
    if differences:
        raise LayoutMismatchError(
            f"KV cannot be mapped between these workers: {'; '.join(differences)}. The sender has"
            f" {source.describe()}; the receiver has {target.describe()}"
        )
    return KVMap(source=source, target=target, heads=heads)


def heads_to_send(source: KVLayout, target: KVLayout) -> range:
    """The heads that this sender's rank writes to this receiver's rank; perhaps none.

    Over all ranks of the sender these are disjoint and cover the receiver's heads.
    """
    start = max(source.heads.start, target.heads.start)
    stop = min(source.heads.stop, target.heads.stop)
    holders = max(source.tp_size * source.kv_heads // source.num_model_heads, 1)
    # Ranks that hold the same heads are neighbours; receivers are spread over them.
    if start >= stop or source.tp_rank % holders != target.tp_rank % holders:
        return range(0)
    return range(start, stop)


def sending_ranks(target: KVLayout, *, tp_size: int) -> tuple[int, ...]:
    """The ranks of a sender of `tp_size` ranks that a receiver's pool is filled by.

    Raises ConfigError if the model's heads cannot be dealt to so many ranks.
    """
    found = []
    for rank in range(tp_size):
        source = rank_layout(
            tp_rank=rank,
            tp_size=tp_size,
            total_heads=target.num_model_heads,
            num_layers=target.num_layers,
            block_size=target.block_size,
            head_dim=target.head_dim,
            dtype=target.dtype,
            planes=target.planes,
        )
        if heads_to_send(source, target):
            found.append(rank)
    return tuple(found)


def _format(layout: KVLayout) -> tuple[object, ...]:
    """All that makes blocks copies of each other, scales included."""
    scales = layout.scales or (1.0,) * (layout.num_layers * layout.planes)
    return (layout.block_shape, layout.dtype, layout.first_head, scales)
