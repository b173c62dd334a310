"""Launches the adapters' kernels: tiles by the number of tokens, shrinking on a stream beside."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from baton.kernels.dependent_launch import dependent_launch
from baton.kernels.fused_linear.adapters import Adapters
from baton.kernels.fused_linear.launch import (
    MAX_TOKENS,
    LinearConfig,
    Problem,
    adds_adapters,
    config_name,
    fused_linear_triton,
    pick_config,
)
from baton.kernels.launch_config import LaunchConfig, next_power_of_2, tuned_config
from baton.kernels.lora.kernel import (
    expand_kernel,
    expand_swiglu_kernel,
    gather_kernel,
    shrink_kernel,
)

if TYPE_CHECKING:
    from baton.kernels.lora import LoraBatch, LoraWeights

_MIN_DOT: Final = 16
_MAX_RANK_TILE: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ShrinkConfig(LaunchConfig):
    """Columns of a tile and of one program's part of the width, the most parts, programs aimed at.

    beside: on a stream of its own, while the vendor's product runs; else before that.
    """

    block_k: int = 128
    part: int = 512
    max_splits: int = 16
    programs: int = 1024
    beside: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpandConfig(LaunchConfig):
    """Features of a tile, and programs aimed at."""

    block_n: int = 128
    programs: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfigs:
    """Of both kernels, and of the product that they belong to."""

    shrink: ShrinkConfig
    expand: ExpandConfig
    product: LinearConfig


_SHRINK_FEW: Final = ShrinkConfig(num_warps=4, num_stages=3)
_SHRINK_MANY: Final = ShrinkConfig(num_warps=4, num_stages=3, part=1024, max_splits=4)
_EXPAND_FEW: Final = ExpandConfig(num_warps=4, num_stages=1)
_EXPAND_MANY: Final = ExpandConfig(num_warps=8, num_stages=1)


@dataclass(frozen=True, slots=True)
class Shrunk:
    """x A^T, float32 [splits, num_tokens, slices, max_rank], to be added up over the splits.

    chained: made on the stream that expands it, so that expanding follows one kernel alone.
    """

    parts: Tensor
    num_splits: int
    chained: bool


@dataclass(frozen=True, slots=True)
class Shrinking:
    """Shrinking under way on `stream` (None: this one)."""

    shrunk: Shrunk
    stream: torch.cuda.Stream | None

    def join(self) -> Shrunk:
        """From here on what this stream does comes after it."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)
        return self.shrunk


def lora_configs(batch: LoraBatch, num_tokens: int, weight: Tensor) -> LoraConfigs:
    """The tuned configurations of the device, for a step of few tokens or many.

    The product's is its own without adapters, unless the tuned file has another.
    """
    device = weight.device
    product = pick_config(num_tokens, weight)
    if num_tokens <= MAX_TOKENS:
        name = config_name(num_tokens, *weight.shape)
        product = tuned_config("lora", name, product, device)
    few = batch.block_tokens <= _MIN_DOT
    name, default = ("shrink_few", _SHRINK_FEW) if few else ("shrink_many", _SHRINK_MANY)
    return LoraConfigs(
        shrink=tuned_config("lora", name, default, device),
        expand=expand_config(batch, device),
        product=product,
    )


def expand_config(batch: LoraBatch, device: torch.device) -> ExpandConfig:
    """As `lora_configs`."""
    few = batch.block_tokens <= _MIN_DOT
    name, default = ("expand_few", _EXPAND_FEW) if few else ("expand_many", _EXPAND_MANY)
    config: ExpandConfig = tuned_config("lora", name, default, device)
    return config


def lora_linear_triton(
    problem: Problem,
    out: Tensor | None,
    lora: LoraWeights,
    batch: LoraBatch,
    *,
    swiglu: bool,
    configs: LoraConfigs | None = None,
) -> Tensor:
    """The product and what the adapters add to it, activated if asked.

    problem: without SwiGLU. A product of our own kernel runs beside the shrinking that was launched
    before it, and adds the rest itself if it can; the vendor's gets a stream beside.
    """
    x = problem.x
    configs = configs or lora_configs(batch, x.shape[0], problem.weight)
    shrinking = shrink(x, lora, batch, configs.shrink, chained=not configs.product.library)
    adapters = Adapters(
        shrunk=shrinking.shrunk.parts,
        pool=lora.pool,
        rooms=lora.rooms,
        ranks=lora.ranks,
        slots=batch.slots,
        b_offset=lora.b_offset,
        heights=lora.heights,
    )
    problem = replace(problem, beside=not configs.product.library)
    if batch.slots.shape[0] and adds_adapters(problem, adapters, configs.product):
        problem = replace(problem, adapters=adapters, swiglu=swiglu)
        return fused_linear_triton(problem, out, config=configs.product)
    made = fused_linear_triton(problem, out, config=configs.product)
    return expand_triton(made, shrinking.join(), lora, batch, configs.expand, swiglu=swiglu)


def shrink(
    x: Tensor, lora: LoraWeights, batch: LoraBatch, config: ShrinkConfig, *, chained: bool
) -> Shrinking:
    """Starts to shrink; x must not change before it is joined. Arguments as the operator's.

    chained: on this stream, whatever the configuration says.
    """
    splits = _num_splits(lora.width, config)
    shape = (splits, x.shape[0], len(lora.heights), lora.max_rank)
    # Allocated here: the memory is this stream's again after the join.
    beside = x.is_cuda and config.beside and not chained
    parts = torch.empty(shape, dtype=torch.float32, device=x.device)
    shrunk = Shrunk(parts, splits, chained=not beside)
    if not beside:
        _shrink(x, shrunk, lora, batch, config)
        return Shrinking(shrunk, None)
    stream = _stream_beside(x.device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _shrink(x, shrunk, lora, batch, config)
    return Shrinking(shrunk, stream)


def gather_triton(token_ids: Tensor, lora: LoraWeights, batch: LoraBatch) -> Shrunk:
    """What an embedding's ids are shrunk to; arguments as the operator's."""
    shape = (1, token_ids.shape[0], 1, lora.max_rank)
    shrunk = torch.empty(shape, dtype=torch.float32, device=lora.pool.device)
    if token_ids.shape[0]:
        tile = _rank_tile(lora)
        gather_kernel[(-(-lora.max_rank // tile), batch.blocks.shape[0])](
            token_ids,
            *_places(lora, batch),
            shrunk,
            *(lora.pool.stride(0), lora.a_offset, lora.rooms.shape[0]),
            MAX_RANK=lora.max_rank,
            BM=_token_tile(batch),
            BR=tile,
            num_warps=8,
        )
    return Shrunk(shrunk, 1, chained=False)


def expand_triton(
    out: Tensor,
    shrunk: Shrunk,
    lora: LoraWeights,
    batch: LoraBatch,
    config: ExpandConfig,
    *,
    swiglu: bool = False,
) -> Tensor:
    """Adds to out in place and returns it, or with swiglu returns what out then activates to."""
    num_tokens, num_slots = out.shape[0], lora.rooms.shape[0]
    heights = [*lora.heights, 0, 0][:3]
    made = out.new_empty(num_tokens, heights[0]) if swiglu else out
    if num_tokens == 0:
        return made
    tiles = sum(-(-h // config.block_n) for h in (heights[:1] if swiglu else heights))
    if tiles == 0:
        return made
    grid = (tiles, _at_a_time(batch, config.programs, tiles))
    options = {
        "MAX_RANK": lora.max_rank,
        "SPLITS": shrunk.num_splits,
        "PRECISION": _precision(out),
        "BM": _token_tile(batch),
        "BN": config.block_n,
        "BR": _rank_tile(lora),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        **_dependent(shrunk, out.device),
    }
    places = (shrunk.parts, *_places(lora, batch), lora.pool.stride(0), lora.b_offset)
    if swiglu:
        expand_swiglu_kernel[grid](out, made, *places, num_slots, num_tokens, heights[0], **options)
    else:
        sizes = (out.stride(0), num_slots, num_tokens, *heights)
        expand_kernel[grid](out, *places, *sizes, SLICES=len(lora.heights), **options)
    return made


def _shrink(
    x: Tensor, shrunk: Shrunk, lora: LoraWeights, batch: LoraBatch, config: ShrinkConfig
) -> None:
    if x.shape[0] == 0:
        return
    slices, tile = len(lora.heights), _rank_tile(lora)
    parts = shrunk.num_splits * slices * -(-lora.max_rank // tile)
    shrink_kernel[(parts, _at_a_time(batch, config.programs, parts))](
        x,
        *_places(lora, batch),
        shrunk.parts,
        *(lora.pool.stride(0), lora.a_offset, lora.width, lora.rooms.shape[0], x.shape[0]),
        SLICES=slices,
        MAX_RANK=lora.max_rank,
        SPLITS=shrunk.num_splits,
        PRECISION=_precision(x),
        BM=_token_tile(batch),
        BR=tile,
        BK=max(min(config.block_k, next_power_of_2(lora.width)), _MIN_DOT),
        **_dependent(shrunk, x.device),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _dependent(shrunk: Shrunk, device: torch.device) -> dict[str, bool]:
    """Kernels that follow two others, on two streams, are launched when both are over."""
    return dependent_launch(device) if shrunk.chained else {"DEPENDENT": False}


def _places(lora: LoraWeights, batch: LoraBatch) -> tuple[Tensor, ...]:
    return (lora.pool, lora.rooms, lora.ranks, batch.order, batch.blocks, batch.counts)


def _num_splits(width: int, config: ShrinkConfig) -> int:
    """A power of two, so that there are few kernels; the last parts may be empty."""
    return min(config.max_splits, next_power_of_2(-(-width // config.part)))


def _at_a_time(batch: LoraBatch, programs: int, tiles: int) -> int:
    """Blocks that run beside each other; more wait for a program that has done one."""
    return max(1, min(batch.blocks.shape[0], -(-programs // max(tiles, 1))))


def _token_tile(batch: LoraBatch) -> int:
    return max(next_power_of_2(batch.block_tokens), _MIN_DOT)


def _rank_tile(lora: LoraWeights) -> int:
    return min(max(next_power_of_2(lora.max_rank), _MIN_DOT), _MAX_RANK_TILE)


def _precision(tensor: Tensor) -> str:
    return "ieee" if tensor.dtype == torch.float32 else "tf32"


@cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
