"""How near a kernel must come to its reference: one table, for interpreter and GPU alike."""

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """Bounds on RMS(error) / RMS(ref), and on the largest |error| / (RMS(ref) + |ref|)."""

    rms_ratio: float
    max_ratio: float


TOLERANCES = {
    torch.float32: Tolerance(rms_ratio=2e-6, max_ratio=1e-5),
    torch.float16: Tolerance(rms_ratio=1e-3, max_ratio=4e-3),
    torch.bfloat16: Tolerance(rms_ratio=6e-3, max_ratio=3e-2),
}

# the interpreter truncates float32 to bfloat16 and multiplies bfloat16 matrices as raw integers
TRITON_DTYPES = tuple(
    dtype for dtype in TOLERANCES if torch.cuda.is_available() or dtype != torch.bfloat16
)


def assert_close(name: str, actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compare in float32 by both metrics; NaN anywhere in `actual` fails."""
    assert actual.shape == expected.shape, f"{name}: {actual.shape} is not {expected.shape}"
    if actual.numel() == 0:
        return
    error = actual.float() - expected.float()
    scale = expected.float().square().mean().sqrt().clamp(min=1e-6)
    rms_ratio = (error.square().mean().sqrt() / scale).item()
    max_ratio = (error.abs() / (scale + expected.float().abs())).max().item()
    bound = TOLERANCES[dtype]
    message = f"{name}: rms ratio {rms_ratio:.2e}, max ratio {max_ratio:.2e}, bound {bound}"
    assert rms_ratio <= bound.rms_ratio, message
    assert max_ratio <= bound.max_ratio, message
