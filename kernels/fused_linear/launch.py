"""Picks a kernel by the number of tokens and the weight's shape, and launches it."""

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import linear

from baton.kernels.dependent_launch import dependent_launch
from baton.kernels.fused_linear.adapters import Adapters
from baton.kernels.fused_linear.kernel import gemv_kernel, small_matmul_kernel
from baton.kernels.launch_config import LaunchConfig, next_power_of_2, tuned_config
from baton.kernels.rms_norm.launch import rms_norm_triton
from baton.kernels.swiglu.launch import swiglu_triton

# Tokens up to which a kernel of ours may be the fastest; the tuned files say where it is.
MAX_TOKENS: Final = 64
_MIN_DOT: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearConfig(LaunchConfig):
    """Outputs and input columns of a tile, powers of two; of one token it has all columns.

    programs: that share one token's tiles; 0: one a tile.
    library: the vendor's product instead of a kernel of ours. fuse_norm: norm within the kernel.
    ahead: cache lines of each output's weights that are asked for while the kernel waits to start.
    splits: parts of the columns that several tokens' tiles are cut into, where the norm is not the
        kernel's: few outputs alone would not fill the device.
    """

    block_n: int = 2
    block_k: int = 128
    programs: int = 528
    library: bool = False
    fuse_norm: bool = True
    ahead: int = 8
    splits: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Arguments as the operators'; `norm_weight` None: no norm. adds: to what `out` holds.

    beside: a kernel of ours runs beside the one launched before it, of which it needs nothing
    until it writes. adapters: what these add, which that one shrinks; see `adds_adapters`.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    swiglu: bool = False
    norm_weight: Tensor | None = None
    eps: float = 0.0
    counts: Tensor | None = None
    adds: bool = False
    beside: bool = False
    adapters: Adapters | None = None


_ONE: Final = LinearConfig(num_warps=8, num_stages=1)
_FEW: Final = LinearConfig(block_n=16, block_k=256, num_warps=4, num_stages=4)
_LIBRARY: Final = LinearConfig(library=True)


def config_name(num_tokens: int, features: int, width: int) -> str:
    """The name under which a tuned file keeps this shape: tokens are rounded up to a bucket."""
    bucket = 1 if num_tokens == 1 else max(next_power_of_2(num_tokens), _MIN_DOT)
    return f"m{bucket}_n{features}_k{width}"


def pick_config(num_tokens: int, weight: Tensor) -> LinearConfig:
    """What the tuned file of the device says of this shape, or a default."""
    if num_tokens > MAX_TOKENS:
        return _LIBRARY
    default = _ONE if num_tokens == 1 else _FEW if num_tokens <= _MIN_DOT else _LIBRARY
    name = config_name(num_tokens, *weight.shape)
    config: LinearConfig = tuned_config("fused_linear", name, default, weight.device)
    return config


def fused_linear_triton(
    problem: Problem,
    out: Tensor | None,
    *,
    forced: bool = False,
    config: LinearConfig | None = None,
) -> Tensor:
    """All of it. forced: no library, whatever the shape (tests); config: instead of the tuned."""
    num_tokens = problem.x.shape[0]
    if config is None:
        config = pick_config(num_tokens, problem.weight)
        if forced and config.library:
            config = _FEW
    if num_tokens == 0:
        return _empty_out(problem) if out is None else out
    # float16 has no room for the product of norm weight and a sum that is not normalised yet
    fits = config.fuse_norm and problem.x.dtype != torch.float16
    if problem.norm_weight is not None and (config.library or not fits):
        x = rms_norm_triton(problem.x, problem.norm_weight, problem.eps)
        problem = replace(problem, x=x, norm_weight=None)
    return _library(problem, out) if config.library else _launch(problem, out, config)


def _library(problem: Problem, out: Tensor | None) -> Tensor:
    if problem.adds and out is not None:
        if problem.bias is None:
            return torch.addmm(out, problem.x, problem.weight.t(), out=out)
        return out.add_(linear(problem.x, problem.weight, problem.bias))
    if problem.swiglu:
        made = swiglu_triton(linear(problem.x, problem.weight, problem.bias))
        return made if out is None else out.copy_(made)
    if out is None:
        return linear(problem.x, problem.weight, problem.bias)
    if problem.bias is None:
        return torch.mm(problem.x, problem.weight.t(), out=out)
    return torch.addmm(problem.bias, problem.x, problem.weight.t(), out=out)


def _empty_out(problem: Problem) -> Tensor:
    features = problem.weight.shape[0] // (2 if problem.swiglu else 1)
    x = problem.x
    return torch.empty((x.shape[0], features), dtype=x.dtype, device=x.device)


def _launch(problem: Problem, out: Tensor | None, config: LinearConfig) -> Tensor:
    x, norm_weight = problem.x, problem.norm_weight
    (num_tokens, width) = x.shape
    out = _empty_out(problem) if out is None else out
    features = out.shape[1]
    pointers = (
        x,
        x if norm_weight is None else norm_weight,
        problem.weight,
        x if problem.bias is None else problem.bias,
        out,
    )
    flags = {
        "HAS_NORM": norm_weight is not None,
        "HAS_BIAS": problem.bias is not None,
        "SWIGLU": problem.swiglu,
        "ADDS": problem.adds,
        "BESIDE": problem.beside,
        "BN": config.block_n,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        **dependent_launch(x.device),
    }
    if num_tokens == 1:
        tiles = -(-features // config.block_n)
        grid = (min(tiles, config.programs or tiles),)
        flags["BK"] = next_power_of_2(width)
        gemv_kernel[grid](*pointers, features, width, problem.eps, **flags)
    else:
        _launch_few(problem, out, config, pointers, flags)
    return out


def _launch_few(
    problem: Problem,
    out: Tensor,
    config: LinearConfig,
    pointers: tuple[Tensor, ...],
    flags: dict[str, bool | int],
) -> None:
    """The kernel for several tokens."""
    x = problem.x
    num_tokens, width = x.shape
    features = out.shape[1]
    block_m, block_n = max(next_power_of_2(num_tokens), _MIN_DOT), max(config.block_n, _MIN_DOT)
    tiles = -(-features // block_n)
    splits, counts, parts = 1, x, x
    if config.splits > 1 and problem.counts is not None and problem.norm_weight is None:
        splits, counts = config.splits, problem.counts
        elements = tiles * splits * block_n * block_m * (2 if problem.swiglu else 1)
        parts = x.new_empty(elements, dtype=torch.float32)
    flags |= {"BN": block_n, "BK": max(min(config.block_k, next_power_of_2(width)), _MIN_DOT)}
    small_matmul_kernel[(tiles, splits)](
        *pointers,
        *(parts, counts, num_tokens, features, width, problem.eps),
        *_adapters(problem, features),
        **flags,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        BM=block_m,
        AHEAD=config.ahead,
        SPLITS=splits,
    )


def adds_adapters(problem: Problem, adapters: Adapters, config: LinearConfig) -> bool:
    """Whether the product's kernel can add what adapters add."""
    num_tokens, features = problem.x.shape[0], problem.weight.shape[0]
    return not config.library and adapters.fit(features, num_tokens, config.block_n)


def _adapters(problem: Problem, features: int) -> tuple[Tensor | int, ...]:
    """The kernel's arguments for them, and the constants from ADAPTED to BR."""
    adapters, x = problem.adapters, problem.x
    if adapters is None:
        return (*([x] * 5), *([0] * 5), False, 1, 1, 1, _MIN_DOT)
    parts, _, slices, ranks = adapters.shrunk.shape
    tile = max(next_power_of_2(ranks), _MIN_DOT)
    ends = [*adapters.heights[:-1], features, features][:2]
    if slices == 3:
        ends[1] += ends[0]
    return (
        *(adapters.shrunk, adapters.pool, adapters.rooms, adapters.ranks, adapters.slots),
        *(adapters.pool.stride(0), adapters.b_offset, adapters.rooms.shape[0], *ends),
        *(True, slices, ranks, parts, tile),
    )
