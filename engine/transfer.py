"""Host to device and back, once per step each way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.generic]

# Triton compiles a kernel anew for arguments that are not so aligned.
_ALIGNMENT: Final = 16


def filled(values: npt.NDArray[np.int64], size: int, rest: int) -> npt.NDArray[np.int64]:
    """`values`, then `rest` up to `size`; np.pad would take ten times longer."""
    made = np.full(size, rest, dtype=np.int64)
    made[: len(values)] = values
    return made


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

    def send(self, staging: Tensor | None = None) -> Sent:
        """The arrays as device tensors, in the order in which they were added.

        staging: uint8 on the device, where they are to lie, one after the other from its start.
        """
        if self._device.type == "cpu":
            return Sent(self._arrays, None)
        num_bytes = packed_bytes(self._arrays)
        packed = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        pack(self._arrays, packed)
        if staging is None:
            return Sent(self._arrays, packed.to(self._device, non_blocking=True))
        return Sent(self._arrays, staging[:num_bytes].copy_(packed, non_blocking=True))


class Sent(Sequence[Tensor]):
    """The tensors of an upload. Each is made when it is asked for: a graph needs few of them."""

    def __init__(self, arrays: Sequence[Array], packed: Tensor | None) -> None:
        """`packed` holds the arrays as `pack` leaves them; None: they stay where they are."""
        self._arrays = arrays
        self._packed = packed
        self._starts: list[int] = []

    def __len__(self) -> int:
        return len(self._arrays)

    @overload
    def __getitem__(self, place: int) -> Tensor: ...

    @overload
    def __getitem__(self, place: slice) -> list[Tensor]: ...

    def __getitem__(self, place: int | slice) -> Tensor | list[Tensor]:
        """What `Upload.add` gave this place, with the array's type and shape."""
        if isinstance(place, slice):
            return [self._tensor(at) for at in range(*place.indices(len(self)))]
        return self._tensor(place)

    def _tensor(self, place: int) -> Tensor:
        array = self._arrays[place]
        if self._packed is None:
            return torch.from_numpy(array)
        if not self._starts:
            sizes = (_aligned(array.nbytes) for array in self._arrays)
            self._starts = [0, *accumulate(sizes)]
        start = self._starts[place]
        dtype = torch.from_numpy(array[:0]).dtype
        return self._packed[start : start + array.nbytes].view(dtype).view(array.shape)


def packed_bytes(arrays: Sequence[Array]) -> int:
    """Bytes that the arrays take one after the other, each aligned."""
    return sum(_aligned(array.nbytes) for array in arrays)


def pack(arrays: Sequence[Array], packed: Tensor) -> None:
    """Copies the arrays into `packed`, uint8 [packed_bytes(arrays)] in host memory."""
    raw, start = packed.numpy(), 0
    for array in arrays:
        raw[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        start += _aligned(array.nbytes)


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
