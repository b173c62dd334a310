"""The adapters' kernels alone, in a CUDA graph, against the bytes that they must move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch

from baton.engine.adapters.step import plan_adapters
from baton.engine.model_info import ModelSpec
from baton.kernels.lora import LoraBatch, LoraWeights, block_tokens
from baton.kernels.lora.launch import Shrunk, expand_triton, shrink_beside
from benchmarks.gpu_timing import graph_us

BYTES_PER_US: Final = 3.0e6
# Layers' worth of weights that calls go round over, so that none stays in the cache.
LAYERS: Final = 16


def measure(
    spec: ModelSpec, num_tokens: int, counts: Sequence[int], rank: int
) -> Iterator[dict[str, Any]]:
    """Rows {measure, shrink_us, expand_us, floor_us, times_floor}, tokens spread evenly."""
    queries, keys = spec.num_query_features, spec.num_kv_features
    hidden, inner = spec.hidden_size, spec.intermediate_size
    shapes = {
        "qkv": ((queries, keys, keys), hidden),
        "o": ((hidden,), queries),
        "gate_up": ((inner, inner), hidden),
        "down": ((hidden,), inner),
    }
    for name, (heights, width) in shapes.items():
        for count in counts:
            if count <= num_tokens:
                row = _measure(heights, width, num_tokens, count, rank)
                yield {"measure": f"kernels {name}, {num_tokens} tokens, {count} distinct", **row}


def _measure(
    heights: tuple[int, ...], width: int, num_tokens: int, count: int, rank: int
) -> dict[str, Any]:
    layers = _layers(heights, width, count, rank)
    batch = _batch(num_tokens, count)
    x = torch.randn(num_tokens, width, device="cuda", dtype=torch.bfloat16)
    out = torch.zeros(num_tokens, sum(heights), device="cuda", dtype=torch.bfloat16)
    swiglu = len(heights) == 2
    shrunk: list[Shrunk] = [shrink_beside(x, layer, batch).join() for layer in layers]
    shrink_us = graph_us(
        [lambda lora=lora: shrink_beside(x, lora, batch).join() for lora in layers]
    )
    expand_us = graph_us(
        [
            lambda lora=lora, parts=parts: expand_triton(out, parts, lora, batch, swiglu=swiglu)
            for lora, parts in zip(layers, shrunk, strict=True)
        ]
    )
    weights = count * rank * (len(heights) * width + sum(heights)) * 2
    # What SwiGLU alone would read and write is the base's.
    activations = num_tokens * (width + (0 if swiglu else 2 * sum(heights))) * 2
    floor_us = (weights + activations) / BYTES_PER_US
    return {
        "shrink_us": round(shrink_us, 2),
        "expand_us": round(expand_us, 2),
        "floor_us": round(floor_us, 2),
        "times_floor": round((shrink_us + expand_us) / floor_us, 2),
    }


def _layers(heights: tuple[int, ...], width: int, count: int, rank: int) -> list[LoraWeights]:
    """A pool with the projection of several layers."""
    a_size, b_size = len(heights) * width, sum(heights)
    unit = a_size + b_size
    pool = torch.randn(count, LAYERS * unit * rank, device="cuda", dtype=torch.bfloat16)
    rooms = torch.full((count,), rank, dtype=torch.int32, device="cuda")
    ranks = torch.full((len(heights), count), rank, dtype=torch.int32, device="cuda")
    return [
        LoraWeights(
            pool=pool,
            rooms=rooms,
            ranks=ranks,
            heights=heights,
            width=width,
            a_offset=layer * unit,
            b_offset=layer * unit + a_size,
            max_rank=rank,
        )
        for layer in range(LAYERS)
    ]


def _batch(num_tokens: int, count: int) -> LoraBatch:
    device = torch.device("cuda")
    size = block_tokens(num_tokens, device)
    arrays = plan_adapters(np.arange(num_tokens) % count, count, size)
    return LoraBatch(
        order=torch.from_numpy(arrays.order).to(device),
        blocks=torch.from_numpy(arrays.blocks).to(device),
        counts=torch.from_numpy(arrays.counts).to(device),
        block_tokens=size,
    )
