from typing import Any

import pytest
import torch
from tests.kernels.closeness import TRITON_DTYPES, assert_close

from baton.kernels.rms_norm import rms_norm
from baton.kernels.rms_norm.reference import rms_norm_reference

SHAPES = [(1, 32), (3, 129), (17, 64), (0, 32), (2, 3, 80)]


@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triton_matches_reference(
    shape: tuple[int, ...], dtype: torch.dtype, triton_device: str
) -> None:
    # rows are slices of wider ones, and the norm must leave its input alone
    wide = torch.randn(*shape[:-1], shape[-1] + 7, device=triton_device).to(dtype)
    x = wide[..., : shape[-1]]
    weight = torch.randn(shape[-1], device=triton_device).to(dtype)
    before = x.clone()
    normed = rms_norm(x, weight, 1e-5, backend="triton")
    assert normed.dtype == dtype
    assert_close("normed", normed, rms_norm_reference(x.float(), weight.float(), 1e-5), dtype)
    assert torch.equal(x, before)


def test_reference_is_the_formula() -> None:
    x, weight = torch.randn(5, 33), torch.randn(33)
    expected = torch.nn.functional.rms_norm(x, (33,), weight, 1e-6)
    assert_close("torch's own", rms_norm(x, weight, 1e-6), expected, torch.float32)


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.randn(4, 8), torch.randn(7), "does not fit"),
        (torch.randn(8, 4).t(), torch.randn(8), "contiguous"),
        (torch.randn(4, 8), torch.randn(16)[::2], "contiguous"),
    ],
)
def test_rejects(x: Any, weight: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rms_norm(x, weight, 1e-6)
