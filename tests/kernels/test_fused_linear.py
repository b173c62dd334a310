from itertools import product
from typing import Any

import pytest
import torch
from tests.kernels.closeness import TRITON_DTYPES, assert_close
from torch import Tensor

from baton.kernels.fused_linear import (
    Norm,
    add_linear,
    fused_linear,
    normed_linear,
    split_counts,
)
from baton.kernels.fused_linear.reference import fused_linear_reference, normed_linear_reference

# (tokens, features, width): even and odd, one token and several
SHAPES = ((1, 64, 128), (1, 30, 81), (5, 48, 64), (17, 34, 40), (0, 8, 8))


def arguments(
    shape: tuple[int, int, int], dtype: torch.dtype, device: str, *, bias: bool
) -> dict[str, Any]:
    tokens, features, width = shape
    scale = width**-0.5
    return {
        "x": torch.randn(tokens, width, device=device).to(dtype),
        "weight": (torch.randn(features, width, device=device) * scale).to(dtype),
        "bias": torch.randn(features, device=device).to(dtype) if bias else None,
    }


def wide(values: dict[str, Any]) -> dict[str, Any]:
    return {name: v.float() if isinstance(v, Tensor) else v for name, v in values.items()}


@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@pytest.mark.parametrize(("bias", "swiglu"), list(product((False, True), repeat=2)))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triton_matches_reference(
    shape: tuple[int, int, int], bias: bool, swiglu: bool, dtype: torch.dtype, triton_device: str
) -> None:
    values = arguments(shape, dtype, triton_device, bias=bias)
    expected = fused_linear_reference(**wide(values), swiglu=swiglu)
    out = fused_linear(**values, swiglu=swiglu, backend="triton")
    assert out.dtype == dtype
    assert_close("linear", out, expected, dtype)
    given = torch.empty_like(out)
    assert fused_linear(**values, swiglu=swiglu, out=given, backend="triton") is given
    assert torch.equal(given, out)


@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adds_to_what_is_there(
    shape: tuple[int, int, int], bias: bool, dtype: torch.dtype, triton_device: str
) -> None:
    values = arguments(shape, dtype, triton_device, bias=bias)
    before = torch.randn(shape[0], shape[1], device=triton_device).to(dtype)
    expected = before.float() + fused_linear_reference(**wide(values), swiglu=False)
    for backend in ("triton", "torch"):
        total = before.clone()
        assert add_linear(total, **values, backend=backend) is total
        assert_close(backend, total, expected, dtype)


@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm(shape: tuple[int, int, int], dtype: torch.dtype, triton_device: str) -> None:
    values = arguments(shape, dtype, triton_device, bias=False)
    x, weight = values["x"], values["weight"]
    before = x.clone()
    norm = Norm(torch.randn(x.shape[1], device=triton_device).to(dtype), 1e-5)
    expected = normed_linear_reference(
        x.float(), norm.weight.float(), norm.eps, weight.float(), None, swiglu=True
    )
    made = normed_linear(x, norm, weight, swiglu=True, backend="triton")
    assert_close("out", made, expected, dtype)
    assert torch.equal(x, before)


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_norm_by_a_kernel_of_its_own(num_tokens: int, triton_device: str) -> None:
    from baton.kernels.fused_linear.launch import LinearConfig, Problem, fused_linear_triton

    values = arguments((num_tokens, 48, 64), torch.float32, triton_device, bias=True)
    norm = torch.randn(64, device=triton_device)
    problem = Problem(**values, norm_weight=norm, eps=1e-6)
    expected = normed_linear_reference(
        values["x"], norm, 1e-6, values["weight"], values["bias"], swiglu=False
    )
    for config in (LinearConfig(fuse_norm=False, block_k=16), LinearConfig(library=True)):
        made = fused_linear_triton(problem, None, config=config)
        assert_close("out", made, expected, torch.float32)


@pytest.mark.parametrize("kind", ["plain", "swiglu", "adds"])
@pytest.mark.parametrize("splits", [2, 8])
@pytest.mark.parametrize("shape", [(2, 40, 96), (17, 34, 40)], ids=str)
def test_columns_split_over_programs(
    shape: tuple[int, int, int], splits: int, kind: str, triton_device: str
) -> None:
    from baton.kernels.fused_linear.launch import LinearConfig, Problem, fused_linear_triton

    values = arguments(shape, torch.float32, triton_device, bias=True)
    counts = split_counts(values["weight"])
    swiglu, adds = kind == "swiglu", kind == "adds"
    problem = Problem(**values, swiglu=swiglu, counts=counts, adds=adds)
    config = LinearConfig(block_n=16, block_k=16, splits=splits)
    expected = fused_linear_reference(**values, swiglu=swiglu)
    before = torch.randn(expected.shape, device=triton_device)
    if adds:
        expected += before
    first = fused_linear_triton(problem, before.clone(), config=config)
    assert_close("out", first, expected, torch.float32)
    # the counts are as they were, and sums are added in one order
    assert not counts.any()
    assert torch.equal(fused_linear_triton(problem, before.clone(), config=config), first)


def test_one_token_by_fewer_programs_than_tiles(triton_device: str) -> None:
    from baton.kernels.fused_linear.launch import LinearConfig, Problem, fused_linear_triton

    values = arguments((1, 46, 40), torch.float32, triton_device, bias=True)
    expected = fused_linear_reference(**values, swiglu=True)
    for programs in (0, 1, 3):
        config = LinearConfig(block_n=2, programs=programs)
        made = fused_linear_triton(Problem(**values, swiglu=True), None, config=config)
        assert_close("out", made, expected, torch.float32)


def test_nan_stays_in_its_token(triton_device: str) -> None:
    values = arguments((3, 32, 64), torch.float32, triton_device, bias=False)
    values["x"][1] = torch.nan
    out = fused_linear(**values, backend="triton")
    assert out[1].isnan().all()
    assert not out[[0, 2]].isnan().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(3, 7)}, "expected x"),
        ({"x": torch.randn(8, 3).t()}, "contiguous"),
        ({"x": torch.randn(3, 8).half()}, "weight torch.float32"),
        ({"bias": torch.randn(5)}, "bias"),
        ({"weight": torch.randn(3, 8), "swiglu": True}, "halves"),
        ({"out": torch.empty(3, 5)}, "out must be"),
    ],
)
def test_rejects(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"x": torch.randn(3, 8), "weight": torch.randn(4, 8)}
    with pytest.raises(ValueError, match=message):
        fused_linear(**{**good, **change})


def test_norm_rejects() -> None:
    with pytest.raises(ValueError, match="norm weight"):
        normed_linear(torch.randn(3, 8), Norm(torch.randn(9), 1e-6), torch.randn(4, 8))


def test_sum_rejects() -> None:
    with pytest.raises(ValueError, match="out must be"):
        add_linear(torch.randn(3, 5), torch.randn(3, 8), torch.randn(4, 8))
