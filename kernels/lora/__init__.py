"""Adapters' part of linear layers, where each row of a batch may have another adapter.

An adapter changes a weight W to W + B A. A and B stay apart: the rows are shrunk, `x A^T`, and the
result is expanded, added to what W made of them, one launch each for a merged projection. Tokens
are grouped by adapter, as in Punica (arXiv 2310.18547) and S-LoRA (arXiv 2311.03285), and shared
out in blocks, so that each adapter's weights are read once or from the cache; rows without one are
in no block that reads anything. Shrinking runs beside the base's product, which does not need it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baton.kernels.backend import Backend, runs_triton
from baton.kernels.fused_linear import add_linear, fused_linear
from baton.kernels.lora.reference import expand_reference, gather_reference, shrink_reference
from baton.kernels.swiglu import swiglu as plain_swiglu

__all__ = ["LoraBatch", "LoraWeights", "block_tokens", "few_adapters", "lora_embed", "lora_linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraBatch:
    """Which tokens of a step go through which slot of the pool.

    order: int32 [num_tokens], the tokens grouped by slot, those without an adapter last.
    blocks: int32 [max_blocks, 3], at most `block_tokens` tokens of one slot each: the slot (-1:
        none), the first one's place in `order`, and how many. Those without an adapter come last.
    counts: int32 [2]: how many blocks have an adapter, and how many there are at all.
    slots: int32 [2 * num_tokens + 1]: each token's slot (-1: none), then how many distinct slots
        there are, then these. Empty where `few_adapters` says no: they are added by a kernel of
        their own.
    """

    order: Tensor
    blocks: Tensor
    counts: Tensor
    slots: Tensor
    block_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraWeights:
    """Where the pool holds the adapters' A and B of one merged projection, B scaled by alpha / r.

    pool: [num_slots, elements], contiguous, dtype of the layer. An adapter whose largest rank,
        rounded up to a multiple of 8, is r has this projection's A at `a_offset * r` of its slot as
        [slices * r, width], and B at `b_offset * r` as [sum(heights), r]; what is over a slice's
        own rank is zero.
    rooms: int32 [num_slots], that r. ranks: int32 [slices, num_slots]; 0: the slice is not changed.
    heights: features of each slice of the output. max_rank: of any slot, a multiple of 8.
    """

    pool: Tensor
    rooms: Tensor
    ranks: Tensor
    heights: tuple[int, ...]
    width: int
    a_offset: int
    b_offset: int
    max_rank: int


def few_adapters(slots: NDArray[np.int64]) -> bool:
    """Whether a product's own kernel adds what these tokens' adapters add, one after the other."""
    few_tokens = 1 < len(slots) <= 64
    return few_tokens and len(np.unique(slots[slots >= 0])) <= 3


def block_tokens(num_tokens: int, device: torch.device) -> int:
    """Tokens of a block in a step of so many: what a tile of the kernels holds; on CPU, all."""
    if device.type != "cuda":
        return max(num_tokens, 1)
    return 16 if num_tokens <= 256 else 64


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora: LoraWeights,
    batch: LoraBatch,
    *,
    swiglu: bool = False,
    out: Tensor | None = None,
    add_to: Tensor | None = None,
    counts: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Return `x (weight + B A)^T + bias` with each token's own B and A, as `fused_linear` does.

    Args:
        x: [num_tokens, width], contiguous.
        weight: [features, width], contiguous, dtype of x. Features beyond the slices' (padding of
            a vocabulary) are nobody's.
        lora: of this projection, whose slices are the weight's rows, in order.
        batch: of these tokens.
        swiglu: the first of two slices gates the second.
        out: [num_tokens, features], contiguous, dtype of x; not with swiglu.
        add_to: as out; what it holds is added to.
        counts: as `fused_linear`'s.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    _check(x, weight, lora, batch, swiglu, add_to if out is None else out)
    if runs_triton(x, backend):
        from baton.kernels.fused_linear.launch import Problem
        from baton.kernels.lora.launch import lora_linear_triton

        adds = add_to is not None
        problem = Problem(x=x, weight=weight, bias=bias, counts=counts, adds=adds)
        return lora_linear_triton(problem, add_to if adds else out, lora, batch, swiglu=swiglu)
    if add_to is not None:
        made = add_linear(add_to, x, weight, bias, backend="torch")
    else:
        made = fused_linear(x, weight, bias, out=out, backend="torch")
    expand_reference(made, shrink_reference(x, lora, batch), lora, batch)
    return plain_swiglu(made, backend="torch") if swiglu else made


def lora_embed(
    x: Tensor,
    token_ids: Tensor,
    lora: LoraWeights,
    batch: LoraBatch,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Add B A to the embeddings x [num_tokens, features] of token_ids [num_tokens]; returns x.

    A of an embedding lies in the pool as [width, r], a row for each token of the vocabulary.
    """
    if x.shape != (token_ids.shape[0], *lora.heights) or not x.is_contiguous():
        raise ValueError(f"x {tuple(x.shape)} is not [{token_ids.shape[0]}, {lora.heights[0]}]")
    if not runs_triton(x, backend):
        return expand_reference(x, gather_reference(token_ids, lora, batch), lora, batch)
    from baton.kernels.lora.launch import expand_config, expand_triton, gather_triton

    config = expand_config(batch, x.device)
    return expand_triton(x, gather_triton(token_ids, lora, batch), lora, batch, config)


def _check(
    x: Tensor,
    weight: Tensor,
    lora: LoraWeights,
    batch: LoraBatch,
    swiglu: bool,
    out: Tensor | None,
) -> None:
    if x.dtype != lora.pool.dtype or x.shape[1] != lora.width or x.shape[0] != batch.order.shape[0]:
        raise ValueError(
            f"x is {x.dtype} {tuple(x.shape)}, but the adapters are {lora.pool.dtype} and take"
            f" [{batch.order.shape[0]}, {lora.width}]"
        )
    if weight.shape[0] < sum(lora.heights) or len(lora.heights) != lora.ranks.shape[0]:
        raise ValueError(f"slices of {lora.heights} do not fit weight {tuple(weight.shape)}")
    halves = len(lora.heights) == 2 and 2 * lora.heights[0] == weight.shape[0]
    if swiglu and (not halves or out is not None):
        raise ValueError("swiglu takes two equal slices, and no out")
