"""Host to device and back, once per step each way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.generic]

# The widest type that travels is int64.
_ALIGNMENT: Final = 8


def to_device(array: Array, device: torch.device) -> Tensor:
    """One array on the device, without waiting for what runs there."""
    host = torch.from_numpy(array)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


class Upload:
    """Collects a step's small arrays; `send` moves them in one copy and returns their tensors.

    On CUDA the arrays are packed into pinned memory (torch's caching host allocator keeps it until
    the copy has run) and copied without waiting; on CPU the tensors share the arrays' memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._arrays: list[Array] = []

    def add(self, array: Array) -> int:
        """Queues a contiguous array; returns its index in what `send` returns."""
        self._arrays.append(array)
        return len(self._arrays) - 1

    def send(self, staging: Tensor | None = None) -> list[Tensor]:
        """The arrays as device tensors, in the order in which they were added.

        staging: uint8 on the device, where they are to lie, one after the other from its start.
        """
        if self._device.type == "cpu":
            return [torch.from_numpy(array) for array in self._arrays]
        num_bytes = packed_bytes(self._arrays)
        packed = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        pack(self._arrays, packed)
        if staging is None:
            return unpack(packed.to(self._device, non_blocking=True), self._arrays)
        sent = staging[:num_bytes]
        return unpack(sent.copy_(packed, non_blocking=True), self._arrays)


def packed_bytes(arrays: Sequence[Array]) -> int:
    """Bytes that the arrays take one after the other, each aligned for its type."""
    return sum(_aligned(array.nbytes) for array in arrays)


def pack(arrays: Sequence[Array], packed: Tensor) -> None:
    """Copies the arrays into `packed`, uint8 [packed_bytes(arrays)] in host memory."""
    raw, start = packed.numpy(), 0
    for array in arrays:
        raw[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        start += _aligned(array.nbytes)


def unpack(packed: Tensor, arrays: Sequence[Array]) -> list[Tensor]:
    """Views of `packed`, on any device, with the arrays' types and shapes."""
    views, start = [], 0
    for array in arrays:
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        views.append(packed[start : start + array.nbytes].view(dtype).view(array.shape))
        start += _aligned(array.nbytes)
    return views


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


class Download:
    """Tensors on their way to the host: started at once, waited for once."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        if not tensors or not tensors[0].is_cuda:
            self._host = tensors
            return
        self._host = [
            torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
            for t in tensors
        ]
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch ships none
        self._event.record()

    def wait(self) -> list[Tensor]:
        """Host tensors, complete."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
