import pytest
import torch
from tests.kernels.closeness import TRITON_DTYPES, assert_close
from tests.kernels.lora_cases import batch_of, pool_of
from torch import Tensor

from baton.kernels.lora import lora_embed, lora_linear
from baton.kernels.swiglu import swiglu

# mixed slots and rows without one; few enough for our own product; a lone row; one slot; nobody
BATCHES = {
    "mixed": [0, 2, -1, 1, 2, 0, 0, -1, 2, 3] * 2,
    "few": [0, 2, -1, 1, 0, 3, 2],
    "one": [1],
    "same": [2] * 21,
    "nobody": [-1] * 5,
    "empty": [],
}
RANKS = [[4, 4, 4], [16, 0, 9], [1, 2, 3], [0, 0, 0]]


def merged(x: Tensor, weight: Tensor, slots: list[int], deltas: list[Tensor]) -> Tensor:
    """Every token through its own merged weight, in float32."""
    rows = [
        x[i].float() @ (weight.float() + (deltas[slot] if slot >= 0 else 0)).t()
        for i, slot in enumerate(slots)
    ]
    return torch.stack(rows) if rows else x.new_zeros(0, weight.shape[0], dtype=torch.float32)


@pytest.mark.parametrize(
    ("heights", "width", "batch", "dtype"),
    [
        *[((40, 24, 24), 72, name, torch.float32) for name in BATCHES],
        *[((48, 32, 16), 72, name, torch.float32) for name in BATCHES],
        *[((64,), 72, "few", dtype) for dtype in TRITON_DTYPES],
        *[((33,), 1030, "mixed", dtype) for dtype in TRITON_DTYPES],
        ((130,), 16, "same", torch.float32),
    ],
    ids=str,
)
def test_equals_merged_weights(
    heights: tuple[int, ...], width: int, batch: str, dtype: torch.dtype, triton_device: str
) -> None:
    slots = BATCHES[batch]
    ranks = [row[: len(heights)] for row in RANKS]
    lora, deltas = pool_of(heights, width, ranks, dtype, triton_device)
    x = torch.randn(len(slots), width, device=triton_device).to(dtype)
    weight = torch.randn(sum(heights), width, device=triton_device).to(dtype) * width**-0.5
    bias = torch.randn(sum(heights), device=triton_device).to(dtype)
    expected = merged(x, weight, slots, deltas) + bias.float()
    for backend, few in (("torch", True), ("triton", True), ("triton", False)):
        plan = batch_of(slots, 16, triton_device, few=few)
        out = lora_linear(x, weight, bias, lora, plan, backend=backend)  # type: ignore[arg-type]
        assert_close(f"{backend} {few}", out, expected, dtype)


@pytest.mark.parametrize(
    ("batch", "dtype"),
    [(name, d) for name in ("mixed", "few") for d in TRITON_DTYPES] + [("nobody", torch.float32)],
    ids=str,
)
def test_swiglu_after_adapters(batch: str, dtype: torch.dtype, triton_device: str) -> None:
    slots, width = BATCHES[batch], 50
    lora, deltas = pool_of((48, 48), width, [r[:2] for r in RANKS], dtype, triton_device)
    x = torch.randn(len(slots), width, device=triton_device).to(dtype)
    weight = torch.randn(96, width, device=triton_device).to(dtype) * width**-0.5
    expected = swiglu(merged(x, weight, slots, deltas), backend="torch")
    plan = batch_of(slots, 16, triton_device)
    for backend in ("torch", "triton"):
        out = lora_linear(x, weight, None, lora, plan, swiglu=True, backend=backend)  # type: ignore[arg-type]
        assert_close(backend, out, expected, dtype)


def test_large_ranks_and_blocks_of_prompts(triton_device: str) -> None:
    slots = [0] * 70 + [-1] * 3 + [1] * 9
    ranks = [[100, 7], [128, 65]]
    lora, deltas = pool_of((24, 40), 96, ranks, torch.float32, triton_device, max_rank=128)
    x = torch.randn(len(slots), 96, device=triton_device)
    weight = torch.randn(70, 96, device=triton_device)
    padded = [torch.cat([d, d.new_zeros(6, 96)]) for d in deltas]
    out = torch.empty(len(slots), 70, device=triton_device)
    plan = batch_of(slots, 64, triton_device)
    made = lora_linear(x, weight, None, lora, plan, out=out, backend="triton")
    assert made is out
    assert_close("prompts", out, merged(x, weight, slots, padded), torch.float32)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_embeddings(backend: str, triton_device: str) -> None:
    slots = BATCHES["mixed"]
    ranks = [[rank[0]] for rank in RANKS]
    lora, deltas = pool_of((20,), 50, ranks, torch.float32, triton_device, embedding=True)
    ids = torch.randint(50, (len(slots),), dtype=torch.int32, device=triton_device)
    x = torch.randn(len(slots), 20, device=triton_device)
    expected = x.clone()
    for i, slot in enumerate(slots):
        if slot >= 0:
            expected[i] += deltas[slot][:, ids[i]]
    plan = batch_of(slots, 16, triton_device)
    assert_close(backend, lora_embed(x, ids, lora, plan, backend=backend), expected, x.dtype)  # type: ignore[arg-type]


def test_refuses_what_does_not_fit() -> None:
    lora, _ = pool_of((8, 8), 16, [[4, 4]], torch.float32, "cpu")
    plan = batch_of([0, 0], 16, "cpu")
    x, weight = torch.zeros(2, 16), torch.zeros(16, 16)
    for bad_x, bad_weight in ((x.double(), weight), (x[:1], weight), (x, weight[:9])):
        with pytest.raises(ValueError):
            lora_linear(bad_x, bad_weight, None, lora, plan)
    with pytest.raises(ValueError, match="swiglu"):
        lora_linear(x, weight, None, lora, plan, swiglu=True, out=torch.zeros(2, 8))
    with pytest.raises(ValueError):
        lora_embed(x, torch.zeros(2), lora, plan)
