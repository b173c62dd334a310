"""Sampling noise as a pure function of (seed, position, token id).

No generator state: a request gets the same noise alone, in any batch, after a preemption and on
another worker. Only integer operations decide it, so CPU and CUDA agree. The mixers are public
domain: splitmix64 (Steele, Lea, Flood 2014) and a two-round 32-bit xorshift-multiply of the
hash-prospector project.
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
_ROUND_1: Final = 0x21F0AAAD
# 0xd35a2d97 as a signed number: torch multiplies int32 modulo 2**32.
_ROUND_2: Final = 0xD35A2D97 - (1 << 32)


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


def random_bits(tokens: Tensor, rows: Tensor) -> Tensor:
    """int32 [rows, vocab], uniform over [0, 2**31), from `token_keys` and `row_keys`."""
    x = tokens + rows[0, :, None]
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= _ROUND_1
    x ^= rows[1, :, None]
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= _ROUND_2
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    return x.bitwise_and_(0x7FFFFFFF)


def gumbel(tokens: Tensor, rows: Tensor) -> Tensor:
    """float32 [rows, vocab] of standard Gumbel noise, always finite.

    -log(E) with E = -log(1 - v) exponential: the largest noise comes from v near 0, where a float
    resolves 2**-32, so rare tokens keep their tail. v stops short of 1, where E is infinite.
    """
    v = (
        random_bits(tokens, rows)
        .to(torch.float32)
        .add_(0.5)
        .mul_(2.0**-31)
        .clamp_(max=1 - 2.0**-24)
    )
    return v.neg_().log1p_().neg_().log_().neg_()
