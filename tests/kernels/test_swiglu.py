import pytest
import torch
from tests.kernels.closeness import TRITON_DTYPES, assert_close

from baton.kernels.swiglu import swiglu


@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@pytest.mark.parametrize(("num_tokens", "width"), [(1, 1), (3, 63), (17, 129), (2, 1500), (0, 8)])
def test_triton_matches_reference(
    num_tokens: int, width: int, dtype: torch.dtype, triton_device: str
) -> None:
    gate_up = torch.randn(num_tokens, 2 * width + 3, device=triton_device).to(dtype)[:, :-3]
    out = swiglu(gate_up, backend="triton")
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert_close("swiglu", out, swiglu(gate_up.float(), backend="torch"), dtype)


def test_reference_is_the_formula_and_keeps_its_input() -> None:
    gate_up = torch.randn(5, 14)
    before = gate_up.clone()
    gate, up = gate_up[:, :7], gate_up[:, 7:]
    assert_close("formula", swiglu(gate_up), gate / (1 + (-gate).exp()) * up, torch.float32)
    assert torch.equal(gate_up, before)


@pytest.mark.parametrize(
    "gate_up", [torch.randn(4, 7), torch.randn(8), torch.randn(8, 4).t()], ids=["odd", "1d", "t"]
)
def test_rejects(gate_up: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="gate_up"):
        swiglu(gate_up)
