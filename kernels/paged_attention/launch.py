"""Launches the paged attention kernels; decides tile and item counts from host integers only."""

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Final

import torch
import triton
from torch import Tensor

from baton.kernels.dependent_launch import dependent_launch
from baton.kernels.launch_config import LaunchConfig, next_power_of_2, tuned_config
from baton.kernels.paged_attention.hopper import (
    extend_hopper,
    fits_hopper,
    is_hopper,
    multiprocessors,
)
from baton.kernels.paged_attention.kernel import decode_kernel, extend_kernel, plan_kernel
from baton.kernels.paged_attention.plan import DevicePlan
from baton.kernels.paged_attention.problem import MIN_DOT_ROWS, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendConfig(LaunchConfig):
    """Query rows (tokens x group) and keys of a tile, powers of two."""

    block_m: int = 64
    block_n: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig(LaunchConfig):
    """Keys of a tile, and how far the rows' keys are split to fill the device.

    A batch becomes at most about `target_programs` programs in all where its rows are fewer or
    uneven, none with fewer than `min_split_tokens` keys. combine_splits: read at a time.
    """

    num_warps: int = 2
    num_stages: int = 3
    block_n: int = 64
    target_programs: int = 528
    min_split_tokens: int = 64
    combine_splits: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfigs:
    """Configurations of both kernels; `hopper`: its own extend kernel is used where it fits."""

    extend: ExtendConfig = field(default_factory=ExtendConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    hopper: bool = True


# Few sizes, few variants to compile.
_PLAN_ROWS: Final = (32, 128, 512, 2048, 8192)
_DEFAULT: Final = AttentionConfigs()
# The compiler's own share of a program's shared memory.
_RESERVED_BYTES: Final = 2048


def attention_configs(kv: Tensor, head_dim: int) -> AttentionConfigs:
    """The tuned configurations of the device that kv is on, by head size and KV type."""
    kind = f"_d{head_dim}" + ("_fp8" if kv.dtype == torch.float8_e4m3fn else "")
    return AttentionConfigs(
        extend=tuned_config("paged_attention", f"extend{kind}", _DEFAULT.extend, kv.device),
        decode=tuned_config("paged_attention", f"decode{kind}", _DEFAULT.decode, kv.device),
    )


def paged_attention_triton(
    q: Tensor,
    kv: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    *,
    scale: float,
    max_query_len: int,
    max_context_len: int,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    kv_scale: Tensor | None = None,
    plan: DevicePlan | None = None,
    configs: AttentionConfigs | None = None,
) -> Tensor:
    """Attention of the whole ragged batch; arguments as the operator's, configs for tests."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if q.shape[0] == 0 or context_lens.shape[0] == 0:
        return out
    problem = Problem(
        q=q,
        kv=kv,
        query_start=query_start,
        context_lens=context_lens,
        block_tables=block_tables,
        kv_scale=kv_scale,
        scale=scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
    )
    configs = configs or attention_configs(kv, q.shape[2])
    if plan is None:
        plan = make_plan(
            kv, query_start, context_lens, sliding_window=sliding_window, config=configs.decode
        )
    _decode(problem, plan, out, configs.decode)
    if max_query_len > 1:
        if configs.hopper and is_hopper(q.device) and fits_hopper(problem):
            extend_hopper(problem, out, programs=multiprocessors(q.device))
        else:
            _extend(problem, out, configs.extend)
    return out


def make_plan(
    kv: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    *,
    sliding_window: int | None,
    config: DecodeConfig | None = None,
) -> DevicePlan:
    """Starts the plan's kernel; kv is any layer's view."""
    config = config or attention_configs(kv, kv.shape[4]).decode
    num_rows, num_kv_heads, device = context_lens.shape[0], kv.shape[2], kv.device
    if num_rows > _PLAN_ROWS[-1]:
        return _whole_rows(query_start, num_kv_heads)
    target_items = -(-config.target_programs // num_kv_heads)
    row_item = torch.empty(num_rows + 1, dtype=torch.int32, device=device)
    item_row = torch.empty(num_rows + target_items, dtype=torch.int32, device=device)
    plan_kernel[(1,)](
        *(query_start, context_lens, row_item, item_row, num_rows),
        0 if sliding_window is None else sliding_window,
        *(target_items, config.min_split_tokens),
        HAS_WINDOW=sliding_window is not None,
        BN=config.block_n,
        BR=next(size for size in _PLAN_ROWS if size >= num_rows),
        num_warps=4,
    )
    # after the plan: the decode kernel, launched early, reads all but its predecessor's results
    counts = torch.zeros((num_rows, num_kv_heads), dtype=torch.int32, device=device)
    return DevicePlan(row_item=row_item, item_row=item_row, counts=counts)


def _whole_rows(query_start: Tensor, num_kv_heads: int) -> DevicePlan:
    """One item a decode row: for more rows than one program can plan, which fill any device."""
    decodes = query_start.diff() == 1
    num_rows, device = decodes.shape[0], decodes.device
    row_item = torch.zeros(num_rows + 1, dtype=torch.int32, device=device)
    row_item[1:] = decodes.cumsum(0)
    rows = torch.arange(num_rows, dtype=torch.int32, device=device)
    # what is no decode goes past the end
    places = torch.where(decodes, row_item[:-1], num_rows).long()
    item_row = torch.zeros(num_rows + 1, dtype=torch.int32, device=device)
    item_row.scatter_(0, places, rows)
    counts = torch.zeros((num_rows, num_kv_heads), dtype=torch.int32, device=device)
    return DevicePlan(row_item=row_item, item_row=item_row, counts=counts)


def fitting_extend(
    config: ExtendConfig, head_dim: int, dtype: torch.dtype, shared_bytes: int
) -> ExtendConfig:
    """With as many stages and keys a tile as so much shared memory has room for.

    Tiles that were tuned for half precision are twice as large in float32.
    """
    columns = next_power_of_2(head_dim)
    while True:
        queries, keys = config.block_m * columns, config.block_n * columns
        elements = queries + config.block_m * config.block_n + 2 * config.num_stages * keys
        if elements * dtype.itemsize <= shared_bytes or config.block_n <= MIN_DOT_ROWS:
            return config
        if config.num_stages > 2:
            config = replace(config, num_stages=config.num_stages - 1)
        else:
            config = replace(config, block_n=config.block_n // 2)


def _extend(problem: Problem, out: Tensor, config: ExtendConfig) -> None:
    num_tokens, num_q_heads, head_dim = problem.q.shape
    num_rows, num_kv_heads = problem.context_lens.shape[0], problem.kv.shape[2]
    group = num_q_heads // num_kv_heads
    block_m = max(config.block_m, next_power_of_2(group))
    config = replace(config, block_m=block_m)
    if out.is_cuda:
        config = fitting_extend(config, head_dim, out.dtype, _shared_bytes(out.device))
    # an upper bound on the tiles of any split of the tokens into rows: no need to know the rows
    num_tiles = num_tokens // (block_m // group) + num_rows
    extend_kernel[(num_kv_heads * num_tiles,)](
        *(problem.q, problem.kv, out, *problem.rows(), num_rows),
        *(problem.q.stride(0), problem.q.stride(1), out.stride(0), out.stride(1)),
        *problem.strides_and_scoring(),
        **problem.constants(),
        BM=block_m,
        BN=config.block_n,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _decode(problem: Problem, plan: DevicePlan, out: Tensor, config: DecodeConfig) -> None:
    _, num_q_heads, head_dim = problem.q.shape
    num_rows, num_kv_heads = problem.context_lens.shape[0], problem.kv.shape[2]
    max_items = plan.item_row.shape[0]
    group = next_power_of_2(num_q_heads // num_kv_heads)
    shape = (max_items, num_q_heads)
    parts = torch.empty((*shape, head_dim), dtype=torch.float32, device=out.device)
    lse = torch.empty(shape, dtype=torch.float32, device=out.device)
    decode_kernel[(num_kv_heads * max_items,)](
        *(problem.q, problem.kv, out, parts, lse, plan.counts, *problem.rows()),
        *(plan.row_item, plan.item_row, num_rows),
        *(problem.q.stride(0), problem.q.stride(1), out.stride(0), out.stride(1)),
        *(*parts.stride()[:2], lse.stride(0)),
        *problem.strides_and_scoring(),
        **problem.constants(),
        BG=max(group, MIN_DOT_ROWS),
        BH=group,
        BN=config.block_n,
        BS=config.combine_splits,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **dependent_launch(out.device),
    )


@cache
def _shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may have."""
    utils = triton.runtime.driver.active.utils
    return int(utils.get_device_properties(device.index)["max_shared_mem"]) - _RESERVED_BYTES
