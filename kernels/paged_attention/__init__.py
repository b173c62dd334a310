"""Attention of a ragged batch of tokens over a paged KV pool."""

from collections.abc import Callable

from torch import Tensor, float8_e4m3fn, int32

from baton.kernels.backend import Backend, runs_triton
from baton.kernels.kv_scale import check_kv_scale
from baton.kernels.paged_attention.plan import AnyPlan, Pages, build_plan
from baton.kernels.paged_attention.torch_impl import paged_attention_torch

__all__ = ["AnyPlan", "paged_attention", "plan_attention"]


def paged_attention(
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
    plan: AnyPlan | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Causal attention of each row's newest tokens over that row's cached keys and values.

    Row `r` owns tokens `query_start[r]:query_start[r + 1]` of `q`; its token `j` sits at position
    `context_lens[r] - query_len + j` and sees the keys at its own and earlier positions. Rows may
    be decodes (one token), prefill chunks, or empty, in any mixture. A token that sees no key (a
    padding row with context 0) gets zeros.

    Args:
        q: [num_tokens, num_q_heads, head_dim], last stride 1.
        kv: [num_blocks, 2, num_kv_heads, block_size, head_dim], last stride 1; one layer's view of
            the pool, keys at index 0, with the new tokens already written. Any block strides.
            Same dtype as q, or float8_e4m3fn with a kv_scale. Slots that no row's context covers
            may hold anything, NaN included.
        query_start: int32 [num_rows + 1], cumulative, from 0 to num_tokens.
        context_lens: int32 [num_rows], tokens in the cache with the new ones.
        block_tables: int32 [num_rows, max_blocks]; entries past a row's context are not used.
        scale: multiplies q.k.
        max_query_len: host bound on the rows' query lengths; spares a device sync.
        max_context_len: host bound on context_lens.
        sliding_window: each token sees at most this many positions, its own counted.
        soft_cap: scores become `soft_cap * tanh(score / soft_cap)`.
        kv_scale: float32 [2, num_kv_heads], contiguous: what the stored keys and values of each
            head are to be multiplied with.
        plan: what `plan_attention` made of the same batch and window; spares working it out anew
            for each layer. It must belong to these arguments: that is not checked.
        backend: forces an implementation; "auto" goes by the device of q.

    Returns:
        [num_tokens, num_q_heads, head_dim], contiguous, dtype of q.

    Raises:
        ValueError: a shape, dtype, stride or bound does not fit.
    """
    _check_tensors(q, kv)
    check_kv_scale(kv, kv_scale)
    _check_rows(q, query_start, context_lens, block_tables)
    if max_context_len > block_tables.shape[1] * kv.shape[3]:
        raise ValueError(
            f"max_context_len {max_context_len} exceeds the block tables' "
            f"{block_tables.shape[1]} blocks of {kv.shape[3]} tokens"
        )
    if max_query_len < 0 or max_query_len > max(max_context_len, 1):
        raise ValueError(f"max_query_len {max_query_len} is not in 0..max_context_len")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window must be positive, got {sliding_window}")
    if soft_cap is not None and soft_cap <= 0:
        raise ValueError(f"soft_cap must be positive, got {soft_cap}")
    implementation: Callable[..., Tensor] = paged_attention_torch
    if runs_triton(q, backend):
        from baton.kernels.paged_attention.launch import paged_attention_triton

        implementation = paged_attention_triton
    return implementation(
        q,
        kv,
        query_start,
        context_lens,
        block_tables,
        scale=scale,
        max_query_len=max_query_len,
        max_context_len=max_context_len,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        kv_scale=kv_scale,
        plan=plan,
    )


def plan_attention(
    kv: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    *,
    max_query_len: int,
    sliding_window: int | None = None,
) -> AnyPlan | None:
    """Work out once, for all layers of a step, what depends on the batch alone.

    Arguments as for `paged_attention`; `kv` is any layer's view. On CUDA a kernel does it: the host
    neither waits nor knows, so that a graph can be captured for other lengths to come.
    """
    if runs_triton(kv, "auto"):
        from baton.kernels.paged_attention.launch import make_plan

        return make_plan(kv, query_start, context_lens, sliding_window=sliding_window)
    if int(query_start[-1]) == 0:
        return None
    return build_plan(
        query_start,
        context_lens,
        block_tables,
        pages=Pages.of(kv),
        max_query_len=max_query_len,
        sliding_window=sliding_window,
    )


def _check_tensors(q: Tensor, kv: Tensor) -> None:
    if q.dim() != 3 or kv.dim() != 5 or kv.shape[1] != 2:
        raise ValueError(
            "expected q [tokens, heads, head_dim] and kv [blocks, 2, kv_heads, block_size,"
            f" head_dim], got {tuple(q.shape)} and {tuple(kv.shape)}"
        )
    if q.shape[2] != kv.shape[4] or q.shape[1] % kv.shape[2] != 0:
        raise ValueError(
            f"q heads {tuple(q.shape[1:])} do not fit kv heads {kv.shape[2]} x {kv.shape[4]}"
        )
    if kv.dtype not in (q.dtype, float8_e4m3fn) or q.device != kv.device:
        raise ValueError(
            f"q is {q.dtype} on {q.device} but kv is {kv.dtype} on {kv.device}; they must agree"
        )
    if q.stride(2) != 1 or kv.stride(4) != 1:
        raise ValueError("head_dim of q and kv must be contiguous")


def _check_rows(q: Tensor, query_start: Tensor, context_lens: Tensor, block_tables: Tensor) -> None:
    if block_tables.dim() != 2 or block_tables.stride(1) != 1:
        raise ValueError("block_tables must be [rows, max_blocks] with contiguous rows")
    num_rows = block_tables.shape[0]
    if context_lens.shape != (num_rows,) or query_start.shape != (num_rows + 1,):
        raise ValueError(
            f"{num_rows} rows of block_tables need context_lens [{num_rows}] and query_start"
            f" [{num_rows + 1}], got {tuple(context_lens.shape)} and {tuple(query_start.shape)}"
        )
    for name, tensor in (
        ("query_start", query_start),
        ("context_lens", context_lens),
        ("block_tables", block_tables),
    ):
        if tensor.dtype != int32 or tensor.device != q.device:
            raise ValueError(f"{name} must be int32 on {q.device}, got {tensor.dtype}")
