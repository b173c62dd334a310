"""Tensors of a model, and which names of a checkpoint fill them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.engine.device import Platform
from baton.engine.parallel.group import ParallelGroup, SingleGroup
from baton.engine.parallel.shards import Span
from baton.kernels.lora import LoraWeights
from baton.protos.errors import BatonError

# A whole dimension, or this rank's part of it.
Dim = int | Span


@dataclass(frozen=True, slots=True)
class Source:
    """What fills a tensor: the part `index` of a checkpoint tensor of `shape`."""

    shape: tuple[int, ...]
    index: tuple[slice, ...]

    @property
    def whole(self) -> bool:
        return all(
            part.stop - part.start == size
            for part, size in zip(self.index, self.shape, strict=True)
        )


@dataclass(slots=True)
class LoraTarget:
    """A projection, of one module or several merged, that adapters may change.

    rows: of each module's features, this rank's. columns: of what it takes, this rank's; an
    embedding's are the whole vocabulary. lora: its place in the adapters' pool, where there is one.
    """

    modules: tuple[str, ...]
    rows: tuple[slice, ...]
    columns: slice
    lora: LoraWeights | None = None

    def weights(self) -> LoraWeights:
        """`lora`, for a step that has adapters. BatonError if there is no pool."""
        if self.lora is None:
            raise BatonError(f"{self.modules[0]} has no place for adapters")
        return self.lora


class Weights:
    """Allocates a model's tensors and remembers which part of the checkpoint goes where.

    A merged tensor (qkv, gate_up) is filled through several names, each a view of its rows, so a
    loader that copies tensor by tensor needs to know nothing of merging. A dimension that is a Span
    has only this rank's part, which the loader reads from the file by slices.
    """

    def __init__(self, platform: Platform, group: ParallelGroup | None = None) -> None:
        self.platform = platform
        self.group = group or SingleGroup()
        self._slots: dict[str, Tensor] = {}
        self._sources: dict[str, Source] = {}
        self._aliases: dict[str, str] = {}
        self._targets: list[LoraTarget] = []

    def tensor(self, name: str, *shape: Dim) -> Tensor:
        """A tensor that the checkpoint holds under `name`, whole or in part; uninitialised.

        A span in the first place may have padding, which is zero.
        """
        tensor = self._empty([_room(dim) for dim in shape])
        count = _count(shape[0])
        tensor[count:].zero_()
        self._add(name, tensor[:count], shape)
        return tensor

    def merged(self, names: Sequence[str], rows: Sequence[Dim], *rest: Dim) -> Tensor:
        """One tensor [sum(rows), *rest], whose consecutive rows the checkpoint holds as `names`."""
        counts = [_count(dim) for dim in rows]
        tensor = self._empty([sum(counts), *map(_count, rest)])
        for name, part, dim in zip(names, tensor.split_with_sizes(counts), rows, strict=True):
            self._add(name, part, (dim, *rest))
        return tensor

    def alias(self, name: str, target: str) -> None:
        """`name` may appear in a checkpoint as a copy of `target`, and must then equal it."""
        self._aliases[name] = target

    def target(self, modules: Sequence[str], rows: Sequence[Dim], width: Dim) -> LoraTarget:
        """Notes that adapters may change these modules, whose weights are [rows, width] each."""
        parts = tuple(_part(dim) for dim in rows)
        self._targets.append(LoraTarget(tuple(modules), parts, _part(width)))
        return self._targets[-1]

    @property
    def targets(self) -> Sequence[LoraTarget]:
        """In the order in which they were noted."""
        return self._targets

    @property
    def slots(self) -> Mapping[str, Tensor]:
        """Checkpoint name to the tensor, or the view of one, that it fills."""
        return self._slots

    @property
    def sources(self) -> Mapping[str, Source]:
        """Checkpoint name to the part of it that its slot holds."""
        return self._sources

    @property
    def aliases(self) -> Mapping[str, str]:
        return self._aliases

    def _add(self, name: str, slot: Tensor, shape: Sequence[Dim]) -> None:
        self._slots[name] = slot
        full = tuple(dim if isinstance(dim, int) else dim.full for dim in shape)
        starts = [0 if isinstance(dim, int) else dim.start for dim in shape]
        index = tuple(slice(a, a + n) for a, n in zip(starts, slot.shape, strict=True))
        self._sources[name] = Source(full, index)

    def _empty(self, shape: Sequence[int]) -> Tensor:
        return torch.empty(tuple(shape), dtype=self.platform.dtype, device=self.platform.device)


def _count(dim: Dim) -> int:
    return dim if isinstance(dim, int) else dim.count


def _part(dim: Dim) -> slice:
    if isinstance(dim, int):
        return slice(0, dim)
    return slice(dim.start, dim.start + dim.count)


def _room(dim: Dim) -> int:
    return dim if isinstance(dim, int) else dim.room
