"""What the attention kernels are asked to do, in the form in which they take it."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from baton.kernels.launch_config import next_power_of_2

# the smallest M of a tensor-core product
MIN_DOT_ROWS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The arguments that the kernels share."""

    q: Tensor
    kv: Tensor
    query_start: Tensor
    context_lens: Tensor
    block_tables: Tensor
    kv_scale: Tensor | None
    scale: float
    sliding_window: int | None
    soft_cap: float | None

    def rows(self) -> tuple[Tensor, ...]:
        scale = self.context_lens if self.kv_scale is None else self.kv_scale
        return self.query_start, self.context_lens, self.block_tables, scale

    def strides_and_scoring(self) -> tuple[int | float, ...]:
        return (
            *self.kv.stride()[:4],
            self.block_tables.stride(0),
            self.scale,
            1.0 if self.soft_cap is None else self.soft_cap,
            0 if self.sliding_window is None else self.sliding_window,
        )

    def constants(self) -> dict[str, int | bool | str]:
        head_dim = self.q.shape[2]
        return {
            "GROUP": self.q.shape[1] // self.kv.shape[2],
            "KV_HEADS": self.kv.shape[2],
            "BLOCK_SIZE": self.kv.shape[3],
            "HEAD_DIM": head_dim,
            "HAS_WINDOW": self.sliding_window is not None,
            "HAS_CAP": self.soft_cap is not None,
            "FP8": self.kv_scale is not None,
            # tf32 would lose half of float32's digits
            "PRECISION": "ieee" if self.q.dtype == torch.float32 else "tf32",
            "BD": max(next_power_of_2(head_dim), MIN_DOT_ROWS),
        }
