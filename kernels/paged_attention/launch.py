"""Launches the paged attention kernels; decides tile and split counts from host integers only."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from baton.kernels.launch_config import LaunchConfig, next_power_of_2, tuned_config
from baton.kernels.paged_attention.kernel import combine_kernel, decode_kernel, extend_kernel

# the smallest M of a tensor-core product
_MIN_DOT_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendConfig(LaunchConfig):
    """Query rows (tokens x group) and keys of a tile, powers of two."""

    block_m: int = 64
    block_n: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig(LaunchConfig):
    """Keys of a tile, and how far a row's keys are split to fill the device.

    Splits are added until there are `target_programs` programs, none with fewer than
    `min_split_tokens` tokens of the longest context, and never more than `max_splits` a row.
    """

    block_n: int = 64
    target_programs: int = 264
    min_split_tokens: int = 256
    max_splits: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """The arguments that both kernels share."""

    q: Tensor
    kv: Tensor
    query_start: Tensor
    context_lens: Tensor
    block_tables: Tensor
    scale: float
    sliding_window: int | None
    soft_cap: float | None

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
            "BLOCK_SIZE": self.kv.shape[3],
            "HEAD_DIM": head_dim,
            "HAS_WINDOW": self.sliding_window is not None,
            "HAS_CAP": self.soft_cap is not None,
            # tf32 would lose half of float32's digits
            "PRECISION": "ieee" if self.q.dtype == torch.float32 else "tf32",
            "BD": max(next_power_of_2(head_dim), _MIN_DOT_ROWS),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfigs:
    """Configurations of both kernels."""

    extend: ExtendConfig = field(default_factory=ExtendConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)


_DEFAULT = AttentionConfigs()


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
    configs: AttentionConfigs | None = None,
) -> Tensor:
    """Attention of the whole ragged batch; arguments as the operator's, configs for tests."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if q.shape[0] == 0 or context_lens.shape[0] == 0:
        return out
    problem = _Problem(
        q=q,
        kv=kv,
        query_start=query_start,
        context_lens=context_lens,
        block_tables=block_tables,
        scale=scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
    )
    if configs is None:
        configs = AttentionConfigs(
            extend=tuned_config("paged_attention", "extend", _DEFAULT.extend, q.device),
            decode=tuned_config("paged_attention", "decode", _DEFAULT.decode, q.device),
        )
    _decode(problem, out, max_context_len, configs.decode)
    if max_query_len > 1:
        _extend(problem, out, configs.extend)
    return out


def _extend(problem: _Problem, out: Tensor, config: ExtendConfig) -> None:
    num_tokens, num_q_heads, _ = problem.q.shape
    num_rows, num_kv_heads = problem.context_lens.shape[0], problem.kv.shape[2]
    group = num_q_heads // num_kv_heads
    block_m = max(config.block_m, next_power_of_2(group))
    # an upper bound on the tiles of any split of the tokens into rows: no need to know the rows
    num_tiles = num_tokens // (block_m // group) + num_rows
    extend_kernel[(num_tiles, num_kv_heads)](
        *(problem.q, problem.kv, out),
        *(problem.query_start, problem.context_lens, problem.block_tables, num_rows),
        *(problem.q.stride(0), problem.q.stride(1), out.stride(0), out.stride(1)),
        *problem.strides_and_scoring(),
        **problem.constants(),
        BM=block_m,
        BN=config.block_n,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _decode(problem: _Problem, out: Tensor, max_context_len: int, config: DecodeConfig) -> None:
    _, num_q_heads, head_dim = problem.q.shape
    num_rows, num_kv_heads = problem.context_lens.shape[0], problem.kv.shape[2]
    num_splits = count_splits(num_rows * num_kv_heads, max_context_len, config)
    parts, lse = out.unsqueeze(2), out
    if num_splits > 1:
        shape = (num_rows, num_q_heads, num_splits)
        parts = torch.empty((*shape, head_dim), dtype=torch.float32, device=out.device)
        lse = torch.empty(shape, dtype=torch.float32, device=out.device)
    constants = problem.constants()
    decode_kernel[(num_rows, num_kv_heads, num_splits)](
        *(problem.q, problem.kv, parts, lse),
        *(problem.query_start, problem.context_lens, problem.block_tables),
        *(problem.q.stride(0), problem.q.stride(1), *parts.stride()[:3], *lse.stride()[:2]),
        *problem.strides_and_scoring(),
        **constants,
        NUM_SPLITS=num_splits,
        BG=max(next_power_of_2(num_q_heads // num_kv_heads), _MIN_DOT_ROWS),
        BN=config.block_n,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if num_splits > 1:
        combine_kernel[(num_rows, num_q_heads)](
            *(parts, lse, out, problem.query_start),
            *(*parts.stride()[:3], *lse.stride()[:2], out.stride(0), out.stride(1)),
            HEAD_DIM=head_dim,
            NUM_SPLITS=num_splits,
            BS=next_power_of_2(num_splits),
            BD=constants["BD"],
        )


def count_splits(num_programs: int, max_context_len: int, config: DecodeConfig) -> int:
    """How many splits of each row's keys bring `num_programs` up to the configured target."""
    wanted = -(-config.target_programs // max(num_programs, 1))
    affordable = max_context_len // config.min_split_tokens
    return max(1, min(wanted, affordable, config.max_splits))
