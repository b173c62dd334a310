"""The adapters' kernels alone, in a CUDA graph, against the bytes that they must move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from baton.engine.adapters.step import plan_adapters
from baton.engine.model_info import ModelSpec
from baton.kernels.fused_linear import Norm, add_linear, normed_linear, split_counts
from baton.kernels.fused_linear.launch import Problem
from baton.kernels.lora import LoraBatch, LoraWeights, block_tokens, few_adapters
from baton.kernels.lora.launch import (
    LoraConfigs,
    Shrunk,
    expand_triton,
    lora_configs,
    lora_linear_triton,
    shrink,
)
from baton.kernels.rms_norm import rms_norm
from benchmarks.gpu_timing import graph_us

BYTES_PER_US: Final = 3.0e6
# Layers' worth of weights that calls go round over, so that none stays in the cache.
LAYERS: Final = 16


def shapes_of(spec: ModelSpec) -> dict[str, tuple[tuple[int, ...], int]]:
    """Heights and width of a layer's merged projections."""
    queries, keys = spec.num_query_features, spec.num_kv_features
    hidden, inner = spec.hidden_size, spec.intermediate_size
    return {
        "qkv": ((queries, keys, keys), hidden),
        "o": ((hidden,), queries),
        "gate_up": ((inner, inner), hidden),
        "down": ((hidden,), inner),
    }


def measure(
    spec: ModelSpec, num_tokens: int, counts: Sequence[int], rank: int
) -> Iterator[dict[str, Any]]:
    """Rows {measure, shrink_us, expand_us, ...} of each projection, tokens spread evenly.

    added_us: by how much they lengthen the product that they belong to, after a norm as in a model.
    """
    for name, (heights, width) in shapes_of(spec).items():
        for count in counts:
            if count <= num_tokens:
                case = Case(heights, width, num_tokens, count, rank)
                row = {"measure": f"kernels {name}, {num_tokens} tokens, {count} distinct"}
                yield row | case.measured()
                del case
                torch.cuda.empty_cache()


class Case:
    """A projection of several layers, as many as leave nothing in the cache, and its adapters."""

    def __init__(
        self, heights: tuple[int, ...], width: int, num_tokens: int, count: int, rank: int
    ) -> None:
        self.layers = _layers(heights, width, count, rank)
        self.batch = _batch(num_tokens, count)
        self.swiglu = len(heights) == 2
        self.adds = len(heights) == 1
        self.x = torch.randn(num_tokens, width, device="cuda", dtype=torch.bfloat16)
        features = sum(heights)
        self.out = torch.zeros(num_tokens, features, device="cuda", dtype=torch.bfloat16)
        self.norm = torch.ones(width, device="cuda", dtype=torch.bfloat16)
        # few enough to fit, too many for the cache
        self.weights = [
            torch.randn(features, width, device="cuda", dtype=torch.bfloat16) * width**-0.5
            for _ in range(min(LAYERS, 2 + (256 << 20) // (features * width)))
        ]
        self.counts = split_counts(self.weights[0])
        weights_bytes = count * rank * (len(heights) * width + features) * 2
        # What SwiGLU alone would read and write is the base's.
        activations = num_tokens * (width + (0 if self.swiglu else 2 * features)) * 2
        self.floor_us = (weights_bytes + activations) / BYTES_PER_US

    def base_us(self) -> float:
        return graph_us([partial(self._base, i) for i in range(LAYERS)])

    def lora_us(self, configs: LoraConfigs | None = None) -> float:
        return graph_us([partial(self.product, i, configs) for i in range(LAYERS)])

    def configs(self) -> LoraConfigs:
        return lora_configs(self.batch, self.x.shape[0], self.weights[0])

    def measured(self) -> dict[str, Any]:
        configs = self.configs()

        def shrink_one(lora: LoraWeights) -> Shrunk:
            return shrink(self.x, lora, self.batch, configs.shrink, chained=True).join()

        def expand_one(lora: LoraWeights, parts: Shrunk) -> Tensor:
            swiglu = self.swiglu
            return expand_triton(self.out, parts, lora, self.batch, configs.expand, swiglu=swiglu)

        shrunk = [shrink_one(lora) for lora in self.layers]
        shrink_us = graph_us([partial(shrink_one, lora) for lora in self.layers])
        expand_us = graph_us(
            [partial(expand_one, *both) for both in zip(self.layers, shrunk, strict=True)]
        )
        base_us, lora_us = self.base_us(), self.lora_us()
        return {
            "shrink_us": round(shrink_us, 2),
            "expand_us": round(expand_us, 2),
            "floor_us": round(self.floor_us, 2),
            "times_floor": round((shrink_us + expand_us) / self.floor_us, 2),
            "base_us": round(base_us, 2),
            "added_us": round(lora_us - base_us, 2),
        }

    def _base(self, i: int) -> Tensor:
        weight = self.weights[i % len(self.weights)]
        if self.adds:
            return add_linear(self.out, self.x, weight, counts=self.counts)
        norm = Norm(self.norm, 1e-5)
        return normed_linear(self.x, norm, weight, swiglu=self.swiglu, counts=self.counts)

    def product(self, i: int, configs: LoraConfigs | None) -> Tensor:
        x = self.x if self.adds else rms_norm(self.x, self.norm, 1e-5)
        weight = self.weights[i % len(self.weights)]
        problem = Problem(x=x, weight=weight, bias=None, counts=self.counts, adds=self.adds)
        return lora_linear_triton(
            *(problem, self.out if self.adds else None, self.layers[i], self.batch),
            swiglu=self.swiglu,
            configs=configs,
        )


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
    slots = np.arange(num_tokens) % count
    arrays = plan_adapters(slots, count, size, few=few_adapters(slots))
    return LoraBatch(
        order=torch.from_numpy(arrays.order).to(device),
        blocks=torch.from_numpy(arrays.blocks).to(device),
        counts=torch.from_numpy(arrays.counts).to(device),
        slots=torch.from_numpy(arrays.slots).to(device),
        block_tokens=size,
    )
