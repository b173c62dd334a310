"""Large host tensors to the device through pinned memory, one thread's share of them."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

STAGE_BYTES: Final = 16 << 20


class Staging:
    """Two pinned buffers in turn: while one travels, the next part is read into the other.

    Pageable memory, such as a mapped file, would be copied by the driver in small synchronous
    steps. The copies run on a stream of their own; `finish` waits for them.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [
            torch.empty(STAGE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)
        ]
        self._sent = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0

    def copy(self, target: Tensor, source: Tensor) -> None:
        """target on the device, source on the host, of one shape."""
        with torch.cuda.stream(self._stream):
            if target.dtype != source.dtype or not target.is_contiguous():
                target.copy_(source)
                return
            into = target.view(-1).view(torch.uint8)
            out = source.contiguous().view(-1).view(torch.uint8)
            for start in range(0, out.shape[0], STAGE_BYTES):
                part = out[start : start + STAGE_BYTES]
                self._send(into[start : start + STAGE_BYTES], part)

    def finish(self) -> None:
        """Returns when all is on the device."""
        self._stream.synchronize()

    def _send(self, into: Tensor, part: Tensor) -> None:
        self._turn = 1 - self._turn
        # An event that was never recorded is over.
        self._sent[self._turn].synchronize()
        stage = self._buffers[self._turn][: part.shape[0]]
        stage.copy_(part)
        into.copy_(stage, non_blocking=True)
        self._sent[self._turn].record(self._stream)
