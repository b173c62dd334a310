"""Host to device and back, once per step each way."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGNMENT = 8


class Upload:
    """Collects a step's small arrays; `send` moves them in one copy and returns their tensors.

    On CUDA the arrays are packed into pinned memory (torch's caching host allocator keeps it until
    the copy has run) and copied without waiting; on CPU the tensors share the arrays' memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._arrays: list[npt.NDArray[np.generic]] = []

    def add(self, array: npt.NDArray[np.generic]) -> int:
        """Queues a contiguous array; returns its index in what `send` returns."""
        self._arrays.append(array)
        return len(self._arrays) - 1

    def send(self) -> list[Tensor]:
        """The arrays as device tensors, in the order in which they were added."""
        if self._device.type == "cpu":
            return [torch.from_numpy(array) for array in self._arrays]
        starts = [0]
        for array in self._arrays:
            starts.append(starts[-1] + -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT)
        packed = torch.empty(max(starts[-1], 1), dtype=torch.uint8, pin_memory=True)
        raw = packed.numpy()
        for array, start in zip(self._arrays, starts, strict=False):
            raw[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        sent = packed.to(self._device, non_blocking=True)
        return [
            sent[start : start + array.nbytes]
            .view(torch.from_numpy(np.empty(0, array.dtype)).dtype)
            .view(array.shape)
            for array, start in zip(self._arrays, starts, strict=False)
        ]


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
