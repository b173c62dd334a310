"""Tensors of a model, and which names of a checkpoint fill them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from baton.engine.device import Platform


class Weights:
    """Allocates a model's tensors and remembers where each checkpoint tensor goes.

    A merged tensor (qkv, gate_up) is filled through several names, each a view of its rows, so a
    loader that copies tensor by tensor needs to know nothing of merging.
    """

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self._slots: dict[str, Tensor] = {}
        self._aliases: dict[str, str] = {}

    def tensor(self, name: str, *shape: int) -> Tensor:
        """A tensor that the checkpoint holds under `name`, in the same shape; uninitialised."""
        tensor = self._empty(shape)
        self._slots[name] = tensor
        return tensor

    def merged(self, names: Sequence[str], rows: Sequence[int], *rest: int) -> Tensor:
        """One tensor [sum(rows), *rest], whose consecutive rows the checkpoint holds as `names`."""
        tensor = self._empty((sum(rows), *rest))
        for name, part in zip(names, tensor.split_with_sizes(list(rows)), strict=True):
            self._slots[name] = part
        return tensor

    def alias(self, name: str, target: str) -> None:
        """`name` may appear in a checkpoint as a copy of `target`, and must then equal it."""
        self._aliases[name] = target

    @property
    def slots(self) -> Mapping[str, Tensor]:
        """Checkpoint name to the tensor, or the view of one, that it fills."""
        return self._slots

    @property
    def aliases(self) -> Mapping[str, str]:
        return self._aliases

    def _empty(self, shape: Sequence[int]) -> Tensor:
        return torch.empty(tuple(shape), dtype=self.platform.dtype, device=self.platform.device)
