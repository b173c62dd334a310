import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.kernels.attention_cases import CASES, AttentionCase, AttentionInputs
from tests.kernels.closeness import TOLERANCES, TRITON_DTYPES, assert_close

from baton.kernels.paged_attention import paged_attention, plan, plan_attention, torch_impl

MIXED = next(case for case in CASES if case.name == "mixed")
DECODE = next(case for case in CASES if case.name == "decode-window")
CAPPED = next(case for case in CASES if case.name == "mixed-window-cap")
PADDING = next(case for case in CASES if case.name == "decode-padding-row")


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_matches_reference(case: AttentionCase, dtype: torch.dtype) -> None:
    inputs = AttentionInputs(case, dtype)
    out = paged_attention(*inputs.tensors, **inputs.options, backend="torch")
    assert_close(case.name, out, inputs.expected(), dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_plan_serves_every_layer(case: AttentionCase) -> None:
    inputs = AttentionInputs(case, torch.float32)
    q, _, *tables = inputs.tensors
    made = plan_attention(
        inputs.kv,
        *tables,
        max_query_len=max(case.query_lens),
        sliding_window=case.sliding_window,
    )
    for shift in (0.0, 1.0):
        kv = inputs.kv + shift
        out = paged_attention(q, kv, *tables, **inputs.options, plan=made)
        inputs.kv = kv
        assert_close(case.name, out, inputs.expected(), torch.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton_matches_reference(case: AttentionCase, triton_device: str) -> None:
    inputs = AttentionInputs(case, torch.float32, triton_device)
    out = paged_attention(*inputs.tensors, **inputs.options, backend="triton")
    assert_close(case.name, out, inputs.expected(), torch.float32)


@pytest.mark.parametrize("dtype", TRITON_DTYPES[1:], ids=str)
def test_triton_half_types(dtype: torch.dtype, triton_device: str) -> None:
    inputs = AttentionInputs(MIXED, dtype, triton_device)
    out = paged_attention(*inputs.tensors, **inputs.options, backend="triton")
    assert out.dtype == dtype
    assert_close("mixed", out, inputs.expected(), dtype)


@pytest.mark.parametrize("combine", [2, 16])
@pytest.mark.parametrize("case", [MIXED, DECODE, PADDING], ids=str)
def test_triton_split_keys(case: AttentionCase, combine: int, triton_device: str) -> None:
    from baton.kernels.paged_attention.launch import (
        AttentionConfigs,
        DecodeConfig,
        ExtendConfig,
        paged_attention_triton,
    )

    decode = DecodeConfig(
        block_n=16, target_programs=64, min_split_tokens=16, combine_splits=combine
    )
    configs = AttentionConfigs(decode=decode, extend=ExtendConfig(block_m=16, block_n=32))
    inputs = AttentionInputs(case, torch.float32, triton_device)
    out = paged_attention_triton(*inputs.tensors, **inputs.options, configs=configs)  # type: ignore[arg-type]
    assert_close(case.name, out, inputs.expected(), torch.float32)


@pytest.mark.parametrize(
    ("lens", "items"),
    [
        # eight rows of one length: as many items each as there is room for
        ((512,) * 8, (4,) * 8),
        # a number of rows that does not divide it: rather fewer than more
        ((520,) * 6, (5,) * 6),
        # enough rows to fill the device by themselves
        ((64,) * 40, (1,) * 40),
        # a long row among short ones is cut, they are not; a padding row has one, to write zeros
        ((2048, 64, 0, 64), (30, 1, 1, 1)),
        # no item is shorter than the minimum
        ((130,), (2,)),
    ],
)
def test_plan_cuts_rows_into_items(
    lens: tuple[int, ...], items: tuple[int, ...], triton_device: str
) -> None:
    from baton.kernels.paged_attention.launch import DecodeConfig, _whole_rows, make_plan

    # two heads and a target of 64 programs: 32 items and what the rows themselves need
    config = DecodeConfig(target_programs=64, min_split_tokens=64, block_n=16)
    kv = torch.zeros(1, 2, 2, 16, 32, device=triton_device)
    starts = torch.arange(len(lens) + 1, dtype=torch.int32, device=triton_device)
    contexts = torch.tensor(lens, dtype=torch.int32, device=triton_device)
    plan = make_plan(kv, starts, contexts, sliding_window=None, config=config)
    ends = plan.row_item.tolist()
    assert tuple(b - a for a, b in pairwise(ends)) == items
    assert ends[-1] <= plan.item_row.shape[0]
    expected = [row for row, count in enumerate(items) for _ in range(count)]
    assert plan.item_row[: ends[-1]].tolist() == expected
    if set(items) == {1}:
        whole = _whole_rows(starts, 2)
        assert whole.row_item.tolist() == ends
        assert whole.item_row[: ends[-1]].tolist() == expected
    # a row of several tokens is not the decode kernel's, and a window leaves little of a long row
    starts[1:] += 1
    windowed = make_plan(kv, starts, contexts, sliding_window=40, config=config)
    assert windowed.row_item.tolist() == [0, *range(len(lens))]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("case", [MIXED, CAPPED], ids=str)
def test_fp8_with_scales(case: AttentionCase, backend: Any, triton_device: str) -> None:
    device = triton_device if backend == "triton" else "cpu"
    inputs = AttentionInputs(case, torch.float32, device)
    kv_scale = torch.rand(2, case.kv_heads, device=device) + 0.5
    stored = inputs.kv.to(torch.float8_e4m3fn)
    inputs.kv = stored.float() * kv_scale[:, :, None, None]
    expected = inputs.expected()
    inputs.kv = stored
    out = paged_attention(*inputs.tensors, **inputs.options, kv_scale=kv_scale, backend=backend)
    # the kernel multiplies in float16
    dtype = torch.float16 if backend == "triton" else torch.float32
    assert_close(case.name, out, expected, dtype)


@pytest.mark.parametrize("seed", range(6))
def test_torch_chunks_and_tiles(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random batches with limits so small that every chunk and tile boundary is crossed."""
    monkeypatch.setattr(plan, "_GATHER_ELEMENTS", 1 << 13)
    monkeypatch.setattr(torch_impl, "_SCORE_ELEMENTS", 1 << 8)
    monkeypatch.setattr(torch_impl, "_MIN_QUERY_TILE", 5)
    draw = random.Random(seed)
    lens = [(draw.choice((0, 1, 1, 1, 2, 30)), draw.randint(0, 100)) for _ in range(12)]
    case = AttentionCase(
        name=f"random-{seed}",
        query_lens=tuple(query for query, _ in lens),
        context_lens=tuple(query + prefix for query, prefix in lens),
        kv_heads=2,
        head_dim=32,
        sliding_window=draw.choice((None, 1, 17, 64)),
        soft_cap=draw.choice((None, 3.0)),
    )
    inputs = AttentionInputs(case, torch.float32)
    out = paged_attention(*inputs.tensors, **inputs.options)
    assert_close(case.name, out, inputs.expected(), torch.float32)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_nan_stays_in_its_row(backend: Any, triton_device: str) -> None:
    device = triton_device if backend == "triton" else "cpu"
    case = replace(MIXED, query_lens=(1, 1, 2), context_lens=(20, 33, 18))
    inputs = AttentionInputs(case, torch.float32, device)
    expected = inputs.expected()
    inputs.kv[inputs.block_tables[1, 0].long()] = torch.nan
    out = paged_attention(*inputs.tensors, **inputs.options, backend=backend)
    assert out[1].isnan().all()
    others = torch.tensor([0, 2, 3], device=device)
    assert_close("others", out[others], expected[others], torch.float32)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_empty_batch(backend: Any, triton_device: str) -> None:
    device = triton_device if backend == "triton" else "cpu"
    case = AttentionCase(name="empty", query_lens=(0,), context_lens=(0,))
    inputs = AttentionInputs(case, torch.float32, device)
    out = paged_attention(*inputs.tensors, **inputs.options, backend=backend)
    assert out.shape == (0, 2, 64)


def _arguments() -> dict[str, Any]:
    inputs = AttentionInputs(MIXED, torch.float32)
    names = ("q", "kv", "query_start", "context_lens", "block_tables")
    return dict(zip(names, inputs.tensors, strict=True)) | inputs.options


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("q", lambda q: q[0], "expected q"),
        ("q", lambda q: q[..., :32], "do not fit"),
        ("q", lambda q: q[:, :1].repeat(1, 3, 1).expand(-1, 3, -1).half(), "agree"),
        ("q", lambda q: q.transpose(1, 2).contiguous().transpose(1, 2), "contiguous"),
        ("kv", lambda kv: kv[:, :1], "expected q"),
        ("kv", lambda kv: kv.expand(-1, -1, 4, -1, -1), "do not fit"),
        ("query_start", lambda starts: starts[:-1], "rows of block_tables"),
        ("query_start", lambda starts: starts.long(), "query_start must be int32"),
        ("context_lens", lambda lens: lens.long(), "context_lens must be int32"),
        ("block_tables", lambda tables: tables.long(), "block_tables must be int32"),
        ("block_tables", lambda tables: tables[0], "must be"),
        ("max_context_len", lambda n: n + 1000, "exceeds"),
        ("max_query_len", lambda n: n + 1000, "max_query_len"),
        ("sliding_window", lambda _: 0, "sliding_window"),
        ("soft_cap", lambda _: -1.0, "soft_cap"),
        ("kv_scale", lambda _: torch.ones(2, 1), "goes with float8"),
        ("kv", lambda kv: kv.to(torch.float8_e4m3fn), "goes with float8"),
        ("backend", lambda _: "cuda", "backend"),
    ],
)
def test_rejects(name: str, change: Any, message: str) -> None:
    arguments = _arguments()
    arguments[name] = change(arguments.get(name))
    with pytest.raises(ValueError, match=message):
        paged_attention(**arguments)


def test_what_hopper_takes() -> None:
    """16-bit, heads of 64 or 128, blocks of whole swizzles, no window, no cap; only on Hopper."""
    from baton.kernels.paged_attention.hopper import fits_hopper, is_hopper

    def fits(dtype: torch.dtype = torch.bfloat16, **fields: Any) -> bool:
        plain: dict[str, Any] = {"name": "", "query_lens": (3,), "context_lens": (20,)}
        case = AttentionCase(**{**plain, "head_dim": 128, **fields})
        return fits_hopper(AttentionInputs(case, dtype).problem())

    assert fits()
    assert fits(torch.float16, head_dim=64, group=128, block_size=24)
    assert not fits(torch.float32)
    others: tuple[dict[str, Any], ...] = (
        {"head_dim": 80},
        {"head_dim": 256},
        {"group": 129},
        {"block_size": 12},
        {"sliding_window": 9},
        {"soft_cap": 2.0},
    )
    assert not any(fits(**fields) for fields in others)
    assert not is_hopper(torch.device("cpu"))
