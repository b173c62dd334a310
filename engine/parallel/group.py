"""The ranks that share a model, and the collectives between them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, Protocol

import torch
from torch import Tensor, distributed
from torch._C._distributed_c10d import PrefixStore, Store

from baton.engine.parallel.shards import WHOLE, Shards

# A collective that lasts this long has lost a rank that is not dead: a frozen one.
COLLECTIVE_TIMEOUT_S: Final = 60.0


class ParallelGroup(Protocol):
    """Collectives, called by all ranks in the same order. They raise RuntimeError if one is lost.

    all_reduce: the sum over the ranks, of a contiguous tensor, which it may overwrite.
    gather_columns: [n, k] of each rank to [n, size * k] on all, in the order of the ranks.
    broadcast: overwrites a contiguous tensor with that of rank 0.
    minimum: the smallest of the ranks' values.
    abort: ends what is under way, so that nobody waits for a rank that is lost; from any thread.
    """

    @property
    def shards(self) -> Shards: ...
    def all_reduce(self, x: Tensor) -> Tensor: ...
    def gather_columns(self, x: Tensor) -> Tensor: ...
    def broadcast(self, x: Tensor) -> None: ...
    def minimum(self, value: int) -> int: ...
    def abort(self) -> None: ...


class SingleGroup:
    """The group of a model that one rank holds whole: nothing to exchange."""

    shards: Shards = WHOLE

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def gather_columns(self, x: Tensor) -> Tensor:
        return x

    def broadcast(self, x: Tensor) -> None:
        pass

    def minimum(self, value: int) -> int:
        return value

    def abort(self) -> None:
        pass


class TorchGroup:
    """Ranks over torch's process groups, NCCL between GPUs and gloo between CPUs.

    The process groups are this object's own: torch's default group is neither used nor set, so
    several engines may live in one process.
    """

    def __init__(self, store: Store, shards: Shards, device: torch.device, host: str) -> None:
        """Waits for all ranks to come. `host`: the address of this machine that gloo listens at."""
        self.shards = shards
        self._device = device
        # Typed loosely: torch's stubs leave out what a backend can do.
        self._group: Any = (
            _nccl(store, shards) if device.type == "cuda" else _gloo(store, shards, host)
        )
        self.minimum(0)

    def all_reduce(self, x: Tensor) -> Tensor:
        self._group.allreduce([x]).wait()
        return x

    def gather_columns(self, x: Tensor) -> Tensor:
        rows, columns = x.shape
        parts = x.new_empty((self.shards.size * rows, columns))
        self._group._allgather_base(parts, x.contiguous()).wait()
        return parts.view(-1, rows, columns).transpose(0, 1).reshape(rows, -1)

    def broadcast(self, x: Tensor) -> None:
        self._group.broadcast(x, 0).wait()

    def minimum(self, value: int) -> int:
        mine = torch.tensor([[value]], dtype=torch.int64, device=self._device)
        return int(self.gather_columns(mine).min())

    def abort(self) -> None:
        self._group.abort()


def _gloo(store: Store, shards: Shards, host: str) -> object:
    gloo: Any = distributed.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=host)]
    options._timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    return gloo(PrefixStore("gloo", store), shards.rank, shards.size, options)


def _nccl(store: Store, shards: Shards) -> object:
    options = distributed.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    nccl = distributed.ProcessGroupNCCL
    return nccl(PrefixStore("nccl", store), shards.rank, shards.size, options)
