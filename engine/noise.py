"""Sampling noise as a pure function of (seed, position, token id).

No generator state: a request gets the same noise alone, in any batch, after a preemption and on
another worker. These are the keys; `kernels/sampling` makes noise of them. The mixer is splitmix64
(Steele, Lea, Flood 2014; public domain).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_GOLDEN: Final = 0x9E3779B97F4A7C15
_MIX_1: Final = 0xBF58476D1CE4E5B9
_MIX_2: Final = 0x94D049BB133111EB


def seed_key(seed: int) -> np.uint64:
    """A request's part of its keys; any whole number is a seed."""
    return np.uint64(_splitmix(np.array([seed % (1 << 64)], dtype=np.uint64))[0])


def row_keys(
    seed_keys: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    """int32 [2, rows]: two keys per row, for the token that goes to `positions`."""
    x = _splitmix(seed_keys + positions.view(np.uint64) * np.uint64(_GOLDEN))
    return np.ascontiguousarray(x.view(np.int32).reshape(-1, 2).T)


def token_keys(vocab_size: int, device: torch.device) -> Tensor:
    """int32 [vocab]: a well-mixed constant per token id."""
    mixed = _splitmix(np.arange(vocab_size, dtype=np.uint64))
    return torch.from_numpy((mixed >> np.uint64(32)).astype(np.uint32).view(np.int32)).to(device)


def _splitmix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
    return x ^ (x >> np.uint64(31))
