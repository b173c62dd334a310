"""Kernels compiled for a real GPU: the interpreter's cases in every dtype, and more.

What only a GPU shows: sizes of a served model, offsets past 2**31 elements, no host
synchronisation, and capture in a CUDA graph.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.kernels import attention_cases, rotary_cases
from tests.kernels.attention_cases import AttentionCase, AttentionInputs
from tests.kernels.closeness import TOLERANCES, assert_close
from tests.kernels.rotary_cases import RotaryCase, RotaryInputs
from torch import Tensor

from baton.kernels.paged_attention import paged_attention
from baton.kernels.paged_attention.hopper import fits_hopper, is_hopper
from baton.kernels.paged_attention.launch import AttentionConfigs, paged_attention_triton
from baton.kernels.rms_norm import rms_norm
from baton.kernels.rms_norm.reference import rms_norm_reference
from baton.kernels.rotary_cache import build_cos_sin, rotary_cache
from baton.kernels.swiglu import swiglu

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

DEVICE = "cuda"
PAST_INT32 = 2**31

SERVED_CASES = (
    AttentionCase(
        name="decode-64x1k",
        query_lens=(1,) * 64,
        context_lens=tuple(range(961, 1025)),
        kv_heads=8,
        group=4,
        head_dim=128,
    ),
    AttentionCase(
        name="decode-2x8k",
        query_lens=(1, 1),
        context_lens=(8192, 5001),
        kv_heads=8,
        group=4,
        head_dim=128,
    ),
    AttentionCase(
        name="prefill-1k-on-2k",
        query_lens=(1024,),
        context_lens=(3072,),
        kv_heads=8,
        group=4,
        head_dim=128,
    ),
    AttentionCase(
        name="mixed-served",
        query_lens=(1, 1, 500, 1, 37, 1),
        context_lens=(900, 17, 500, 4000, 1037, 1),
        kv_heads=4,
        group=7,
        head_dim=128,
        sliding_window=1024,
    ),
)

# What Hopper's extend kernel does otherwise than the plain one: boxes of every size, several tiles
# of keys and of queries, rows without keys.
_BLOCKS = AttentionCase(
    name="",
    query_lens=(300, 1, 5, 130),
    context_lens=(901, 40, 49, 130),
    kv_heads=2,
    group=4,
    head_dim=128,
)
HOPPER_CASES = (
    *(
        replace(_BLOCKS, name=f"extend-blocks-of-{size}", block_size=size)
        for size in (8, 32, 48, 64, 128, 256)
    ),
    AttentionCase(
        name="extend-group1",
        query_lens=(129, 300, 0, 33),
        context_lens=(641, 300, 5, 2000),
        kv_heads=2,
        group=1,
        head_dim=128,
    ),
    AttentionCase(
        name="extend-group16-dim64", query_lens=(70, 9), context_lens=(70, 268), group=16
    ),
    AttentionCase(
        name="extend-no-keys", query_lens=(200, 20), context_lens=(400, 0), group=4, head_dim=128
    ),
)


@pytest.fixture(autouse=True)
def _release_memory() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


@contextmanager
def no_host_sync() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Every case in the type that is served, and those of every branch in the others: what takes time
# is compiling, and each head size, group, type and option is a kernel of its own.
ATTENTION = [
    (case, torch.bfloat16) for case in attention_cases.CASES + SERVED_CASES + HOPPER_CASES
] + [
    (case, dtype)
    for case in attention_cases.CASES + HOPPER_CASES
    for dtype in (torch.float32, torch.float16)
    if case.name in ("mixed", "mixed-window-cap", "decode-lengths-group4", "extend-group1")
]


@pytest.fixture(scope="module")
def compiled() -> None:
    """All attention kernels, compiled side by side before the first test runs."""

    def attend(pair: tuple[AttentionCase, torch.dtype]) -> None:
        inputs = AttentionInputs(*pair, DEVICE)
        paged_attention(*inputs.tensors, **inputs.options)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(attend, ATTENTION))
    torch.cuda.synchronize()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("case", "dtype"), ATTENTION, ids=str)
def test_attention(case: AttentionCase, dtype: torch.dtype) -> None:
    inputs = AttentionInputs(case, dtype, DEVICE)
    out = paged_attention(*inputs.tensors, **inputs.options)
    assert out.dtype == dtype
    assert_close(case.name, out, inputs.expected(), dtype)


@pytest.mark.skipif(not is_hopper(torch.device(DEVICE, 0)), reason="for Hopper GPUs")
def test_hopper_takes_what_is_served() -> None:
    """The cases above are for its own kernel, and the plain one does the same."""
    for case in HOPPER_CASES:
        assert fits_hopper(AttentionInputs(case, torch.bfloat16, DEVICE).problem())
    inputs = AttentionInputs(SERVED_CASES[2], torch.bfloat16, DEVICE)
    out = paged_attention(*inputs.tensors, **inputs.options)
    plain = paged_attention_triton(
        *inputs.tensors, **inputs.options, configs=AttentionConfigs(hopper=False)
    )
    assert not torch.equal(out, plain)
    assert_close("plain", plain, inputs.expected(), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", rotary_cases.CASES, ids=str)
def test_rotary_cache(case: RotaryCase, dtype: torch.dtype) -> None:
    inputs = RotaryInputs(case, dtype, DEVICE)
    expected_q, expected_pool = inputs.expected()
    out = rotary_cache(*inputs.tensors, **inputs.norms)
    assert_close("q", out, expected_q, dtype)
    written = ~inputs.pool.isnan()
    assert torch.equal(written, ~expected_pool.isnan())
    assert_close("pool", inputs.pool[written], expected_pool[written], dtype)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("hidden", [64, 1023, 4096, 8192])
def test_norm(hidden: int, dtype: torch.dtype) -> None:
    x = torch.randn(63, hidden, device=DEVICE).to(dtype)
    weight = torch.randn(hidden, device=DEVICE).to(dtype)
    expected = rms_norm_reference(x.float(), weight.float(), 1e-6)
    assert_close("normed", rms_norm(x, weight, 1e-6), expected, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("width", [63, 1024, 14336])
def test_swiglu(width: int, dtype: torch.dtype) -> None:
    gate_up = torch.randn(63, 2 * width, device=DEVICE).to(dtype)
    assert_close("swiglu", swiglu(gate_up), swiglu(gate_up.float(), backend="torch"), dtype)


def _big_pool(head_dim: int) -> Tensor:
    """A NaN pool whose last blocks lie past 2**31 elements: 32 layers of 8 heads."""
    shape = (32, 2, 8, attention_cases.BLOCK_SIZE, head_dim)
    num_blocks = PAST_INT32 // torch.Size(shape).numel() + 8
    return torch.full((num_blocks, *shape), torch.nan, dtype=torch.bfloat16, device=DEVICE)


@pytest.mark.parametrize("query_len", [1, 40])
def test_pool_past_int32(query_len: int) -> None:
    pool = _big_pool(128)
    kv = pool[:, -1]
    num_blocks, context_len, block_size = pool.shape[0], 70, attention_cases.BLOCK_SIZE
    q = torch.randn(query_len, 32, 128, device=DEVICE, dtype=torch.bfloat16)
    k, v = torch.randn(2, context_len, 8, 128, device=DEVICE, dtype=torch.bfloat16)
    table = torch.arange(num_blocks - 1, num_blocks - 6, -1, dtype=torch.int32, device=DEVICE)
    at = torch.arange(context_len, device=DEVICE)
    slots = table.long()[at // block_size] * block_size + at % block_size
    still = build_cos_sin(torch.zeros(64, device=DEVICE), 1)
    rotary_cache(k, k, v, kv, torch.zeros_like(at), slots, still)
    # the same five blocks in a small pool
    small = kv[num_blocks - 5 :].clone()
    rows = (
        torch.tensor([0, query_len], dtype=torch.int32, device=DEVICE),
        torch.tensor([context_len], dtype=torch.int32, device=DEVICE),
    )
    options: dict[str, Any] = {
        "scale": 128**-0.5,
        "max_query_len": query_len,
        "max_context_len": context_len,
    }
    out = paged_attention(q, kv, *rows, table[None], **options)
    local = (table - (num_blocks - 5))[None]
    expected = paged_attention(q.float(), small.float(), *rows, local, **options, backend="torch")
    assert_close("attention", out, expected, torch.bfloat16)
    assert int((~pool.isnan()).sum()) == 2 * context_len * 8 * 128


def test_tokens_past_int32() -> None:
    """More query elements than 2**31; each row decodes over one key, so it returns its value."""
    num_tokens = PAST_INT32 // (32 * 128) + 100
    q = torch.ones(num_tokens, 32, 128, dtype=torch.bfloat16, device=DEVICE)
    kv = torch.randn(4, 2, 8, 16, 128, dtype=torch.bfloat16, device=DEVICE)
    starts = torch.arange(num_tokens + 1, dtype=torch.int32, device=DEVICE)
    ones = torch.ones(num_tokens, dtype=torch.int32, device=DEVICE)
    tables = (starts[:-1] % 4)[:, None]
    out = paged_attention(
        q, kv, starts, ones, tables, scale=1.0, max_query_len=1, max_context_len=1
    )
    values = kv[:, 1, :, 0].repeat_interleave(4, dim=1)  # [blocks, q_heads, head_dim]
    for token in (0, num_tokens // 2, num_tokens - 1):
        assert torch.equal(out[token], values[token % 4])
    del out
    still = build_cos_sin(torch.zeros(64, device=DEVICE), 1)
    k = q[:, :8]
    nowhere = torch.full((num_tokens,), -1, device=DEVICE)
    turned = rotary_cache(q, k, k, kv, torch.zeros_like(nowhere), nowhere, still)
    assert bool((turned[-100:] == 1).all())


def test_rows_past_int32() -> None:
    width = 28672
    num_rows = PAST_INT32 // (2 * width) + 10
    wide = torch.ones(num_rows, 2 * width, dtype=torch.bfloat16, device=DEVICE)
    wide[-5:] = torch.randn(5, 2 * width, device=DEVICE)
    out = swiglu(wide)
    assert_close("swiglu", out[-5:], swiglu(wide[-5:].float(), backend="torch"), torch.bfloat16)
    del out
    weight = torch.randn(2 * width, dtype=torch.bfloat16, device=DEVICE)
    expected = rms_norm_reference(wide[-5:].float(), weight.float(), 1e-6)
    assert_close("norm", rms_norm(wide, weight, 1e-6)[-5:], expected, torch.bfloat16)


def _layer_step(inputs: AttentionInputs) -> Callable[[], Tensor]:
    """One decode layer's operators on fixed buffers, as a CUDA graph would capture them."""
    q, kv, *_ = inputs.tensors
    num_tokens, _, head_dim = q.shape
    k = torch.randn(num_tokens, kv.shape[2], head_dim, dtype=q.dtype, device=DEVICE)
    weight = torch.randn(head_dim, dtype=q.dtype, device=DEVICE)
    table = build_cos_sin(torch.rand(head_dim // 2, device=DEVICE), num_tokens)
    positions = torch.arange(num_tokens, device=DEVICE)
    nowhere = torch.full((num_tokens,), -1, device=DEVICE)

    def step() -> Tensor:
        turned = rotary_cache(q, k, k, kv, positions, nowhere, table, q_norm=weight)
        out = paged_attention(turned, *inputs.tensors[1:], **inputs.options)
        normed = rms_norm(out + turned, weight, 1e-6)
        return rms_norm(normed, weight, 1e-6) + swiglu(torch.cat([normed, out], -1).flatten(1))[
            :, : q.shape[1] * head_dim
        ].view_as(out)

    return step


@pytest.mark.parametrize("case", [SERVED_CASES[0], SERVED_CASES[3]], ids=str)
def test_no_host_sync(case: AttentionCase) -> None:
    step = _layer_step(AttentionInputs(case, torch.bfloat16, DEVICE))
    step()
    with no_host_sync():
        step()


def test_cuda_graph_reads_lengths_on_device() -> None:
    inputs = AttentionInputs(SERVED_CASES[0], torch.bfloat16, DEVICE)
    step = _layer_step(inputs)
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    # shorter contexts and a padding row, as later steps of a served batch have
    inputs.context_lens.sub_(500)
    inputs.context_lens[7] = 0
    graph.replay()
    assert_close("replayed", captured, step(), torch.bfloat16)
