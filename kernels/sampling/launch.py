"""Launches the draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from baton.kernels.launch_config import LaunchConfig, next_power_of_2, tuned_config
from baton.kernels.sampling.kernel import draw_kernel, filtered_kernel

if TYPE_CHECKING:
    from baton.kernels.sampling import Filters, Noise


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawConfig(LaunchConfig):
    """Tokens of a tile, a power of two, and programs that the rows together should come to."""

    block_v: int = 2048
    target_programs: int = 264


_DEFAULT: Final = DrawConfig(num_warps=8, num_stages=2)
_FILTERED: Final = DrawConfig(block_v=8192, num_warps=16, num_stages=2)


def draw_triton(logits: Tensor, noise: Noise | None, filters: Filters | None) -> Tensor:
    """int64 [rows]; arguments as the operator's."""
    out = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    if logits.numel() == 0:
        return out
    config = tuned_config("sampling", "draw", _DEFAULT, logits.device)
    if filters is None or filters.rows.shape[0] < logits.shape[0]:
        _draw(logits, noise, filters, out, config)
    if filters is not None and noise is not None:
        config = tuned_config("sampling", "filtered", _FILTERED, logits.device)
        filtered_kernel[(filters.rows.shape[0],)](
            *(logits, noise.row_keys, noise.token_keys, noise.temperatures),
            *(filters.rows, filters.min_ps, filters.top_ks, filters.top_ps),
            *(out, logits.stride(0), *logits.shape),
            BV=min(config.block_v, next_power_of_2(logits.shape[1])),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return out


def _draw(
    logits: Tensor, noise: Noise | None, filters: Filters | None, out: Tensor, config: DrawConfig
) -> None:
    num_rows, vocab = logits.shape
    block_v = min(config.block_v, next_power_of_2(vocab))
    tiles = -(-vocab // block_v)
    tiles_each = min(-(-tiles * num_rows // config.target_programs), tiles)
    chunks = -(-tiles // tiles_each)
    device = logits.device
    skip = out
    if filters is not None:
        skip = torch.zeros(num_rows, dtype=torch.int32, device=device)
        skip.index_fill_(0, filters.rows, 1)
    draw_kernel[(num_rows, chunks)](
        logits,
        *((out, out, out) if noise is None else (noise.row_keys, noise.token_keys)),
        *(() if noise is None else (noise.temperatures,)),
        skip,
        torch.empty((num_rows, chunks), dtype=torch.float32, device=device),
        torch.empty((num_rows, chunks), dtype=torch.int32, device=device),
        torch.zeros(num_rows, dtype=torch.int32, device=device),
        *(out, logits.stride(0), num_rows, vocab, tiles_each),
        HAS_NOISE=noise is not None,
        HAS_SKIP=filters is not None,
        BV=block_v,
        BC=next_power_of_2(tiles),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
