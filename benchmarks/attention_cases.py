"""Attention of served shapes over a block-major pool of several layers, for timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from baton.kernels.paged_attention.launch import (
    AttentionConfigs,
    attention_configs,
    make_plan,
    paged_attention_triton,
)

BLOCK_SIZE = 16
HEAD_DIM = 128
NUM_LAYERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Rows of `query_len` new tokens that see `context_len`; heads as of an 8B model."""

    rows: int
    context_len: int
    query_len: int = 1
    heads: int = 32
    kv_heads: int = 8
    fp8: bool = False

    def __str__(self) -> str:
        kind = "decode" if self.query_len == 1 else "prefill"
        return f"{kind} {self.rows}x{self.context_len}" + (" fp8" if self.fp8 else "")

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that decoding one token a row reads, in one layer."""
        item = 1 if self.fp8 else 2
        return self.rows * self.context_len * 2 * self.kv_heads * HEAD_DIM * item

    @property
    def operations(self) -> float:
        """Multiplications and additions of the causal scores and mixes, in one layer."""
        seen = self.query_len * (self.context_len - (self.query_len - 1) / 2)
        return 4.0 * self.rows * seen * self.heads * HEAD_DIM


class Inputs:
    """Random tensors of a shape; blocks are dealt at random."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        pages = -(-shape.context_len // BLOCK_SIZE)
        size = (shape.rows * pages, NUM_LAYERS, 2, shape.kv_heads, BLOCK_SIZE, HEAD_DIM)
        pool = torch.empty(size, dtype=torch.bfloat16, device="cuda").normal_()
        self.pool = pool.to(torch.float8_e4m3fn) if shape.fp8 else pool
        self.q = torch.randn(
            shape.rows * shape.query_len, shape.heads, HEAD_DIM, device="cuda"
        ).bfloat16()
        order = torch.randperm(shape.rows * pages, device="cuda")
        self.tables = order.view(shape.rows, pages).int()
        ends = torch.arange(shape.rows + 1, device="cuda") * shape.query_len
        self.starts = ends.int()
        self.lens = torch.full((shape.rows,), shape.context_len, device="cuda").int()
        self.scale: Tensor | None = None
        if shape.fp8:
            self.scale = torch.ones(2, shape.kv_heads, device="cuda")

    def calls(self, configs: AttentionConfigs | None = None) -> list[Callable[[], Tensor]]:
        """One call a layer, with one plan for all, as a step has it."""
        chosen = configs or attention_configs(self.pool[:, 0], HEAD_DIM)
        plan = make_plan(
            self.pool[:, 0], self.starts, self.lens, sliding_window=None, config=chosen.decode
        )

        def call(layer: int) -> Tensor:
            return paged_attention_triton(
                *(self.q, self.pool[:, layer], self.starts, self.lens, self.tables),
                scale=HEAD_DIM**-0.5,
                max_query_len=self.shape.query_len,
                max_context_len=self.shape.context_len,
                kv_scale=self.scale,
                plan=plan,
                configs=chosen,
            )

        return [partial(call, layer) for layer in range(NUM_LAYERS)]
