from typing import Any

import pytest
import torch
from tests.kernels.closeness import TOLERANCES, TRITON_DTYPES, assert_close
from tests.kernels.rotary_cases import CASES, RotaryCase, RotaryInputs

from baton.kernels.rotary_cache import build_cos_sin, rotary_cache


def check(case: RotaryCase, dtype: torch.dtype, device: str, backend: Any) -> None:
    inputs = RotaryInputs(case, dtype, device)
    expected_q, expected_pool = inputs.expected()
    before = inputs.k.clone(), inputs.q.clone()
    out = rotary_cache(*inputs.tensors, **inputs.norms, backend=backend)
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert_close("q", out, expected_q, dtype)
    # exactly the mapped slots of this layer were written, and no other
    written = ~inputs.pool.isnan()
    assert torch.equal(written, ~expected_pool.isnan())
    assert_close("pool", inputs.pool[written], expected_pool[written], dtype)
    assert torch.equal(inputs.k, before[0])
    assert torch.equal(inputs.q, before[1])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_matches_formula(case: RotaryCase, dtype: torch.dtype) -> None:
    check(case, dtype, "cpu", "torch")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton_matches_formula(case: RotaryCase, triton_device: str) -> None:
    check(case, torch.float32, triton_device, "triton")


@pytest.mark.parametrize("dtype", TRITON_DTYPES[1:], ids=str)
def test_triton_half_types(dtype: torch.dtype, triton_device: str) -> None:
    check(CASES[5], dtype, triton_device, "triton")


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("case", [CASES[4], CASES[8]], ids=str)
def test_fp8(case: RotaryCase, backend: Any, triton_device: str) -> None:
    device = triton_device if backend == "triton" else "cpu"
    inputs = RotaryInputs(case, torch.float32, device)
    # past what the type holds, in one value
    inputs.v[1, 0, 0] = 1e6
    kv_scale = torch.rand(2, case.kv_heads, device=device) + 0.5
    scales = kv_scale[:, :, None, None]
    expected_q, pool = inputs.expected()
    exact = (pool[:, 1] / scales).clamp(-448, 448)
    expected = exact.to(torch.float8_e4m3fn).float()
    inputs.pool = inputs.pool.to(torch.float8_e4m3fn)
    out = rotary_cache(*inputs.tensors, **inputs.norms, kv_scale=kv_scale, backend=backend)
    assert_close("q", out, expected_q, torch.float32)
    stored = inputs.kv.float()
    assert torch.equal(stored.isnan(), expected.isnan())
    written = ~expected.isnan()
    if device == "cpu" and backend == "triton":
        # the interpreter loses the carry into the exponent, and what is below normal numbers
        written &= (exact.frexp().mantissa.abs() < 0.96) & (exact.abs() > 2**-6)
    # a value in the middle of two representable ones may fall to either side
    assert (stored[written] != expected[written]).float().mean() < 0.01


def test_tables() -> None:
    table = build_cos_sin(torch.tensor([1.0, 0.5]), 3, scaling=2.0)
    angles = torch.tensor([[0.0, 0.0], [1.0, 0.5], [2.0, 1.0]])
    assert torch.allclose(table, 2.0 * torch.cat([angles.cos(), angles.sin()], dim=1))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("q", lambda q: q[0], "expected q"),
        ("q", lambda q: q[..., :32], "head_dim"),
        ("q", lambda q: q.half(), "dtype"),
        ("q", lambda q: q.transpose(1, 2).contiguous().transpose(1, 2), "contiguous"),
        ("v", lambda v: v[:, :1], "expected q"),
        ("kv", lambda kv: kv[:, :1], "does not fit"),
        ("kv", lambda kv: kv[:, :, :1], "does not fit"),
        ("positions", lambda positions: positions[:-1], "positions"),
        ("positions", lambda positions: positions.float(), "positions"),
        ("slot_mapping", lambda slots: slots.int(), "slot_mapping"),
        ("slot_mapping", lambda slots: slots[:-1], "slot_mapping"),
        ("cos_sin", lambda table: table[:, :-1].contiguous(), "cos_sin"),
        ("cos_sin", lambda table: table.repeat(1, 2), "cos_sin"),
        ("cos_sin", lambda table: table[:, ::2], "contiguous"),
        ("q_norm", lambda _: torch.randn(63), "norm weight"),
        ("k_norm", lambda _: torch.randn(128)[::2], "norm weight"),
    ],
)
def test_rejects(name: str, change: Any, message: str) -> None:
    inputs = RotaryInputs(CASES[0], torch.float32)
    names = ("q", "k", "v", "kv", "positions", "slot_mapping", "cos_sin")
    arguments: dict[str, Any] = dict(zip(names, inputs.tensors, strict=True))
    arguments[name] = change(arguments.get(name))
    with pytest.raises(ValueError, match=message):
        rotary_cache(**arguments)
