from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.kernels.closeness import TRITON_DTYPES
from torch import Tensor

from baton.kernels.sampling import Filters, Noise, draw

VOCAB = 300


def noise_of(rows: int, temperatures: list[float], device: str) -> Noise:
    low, high = -(2**31), 2**31 - 1
    return Noise(
        row_keys=torch.randint(low, high, (2, rows), dtype=torch.int32, device=device),
        token_keys=torch.randint(low, high, (VOCAB,), dtype=torch.int32, device=device),
        temperatures=torch.tensor(temperatures, device=device),
    )


def filters_of(
    device: str, rows: list[int], min_ps: list[float], top_ks: list[int], top_ps: list[float]
) -> Filters:
    return Filters(
        rows=torch.tensor(rows, device=device),
        min_ps=torch.tensor(min_ps, device=device),
        top_ks=torch.tensor(top_ks, dtype=torch.int32, device=device),
        top_ps=torch.tensor(top_ps, device=device),
    )


@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [1, 77, 300])
def test_greedy(vocab: int, dtype: torch.dtype, triton_device: str) -> None:
    logits = torch.randn(5, vocab + 3, device=triton_device).to(dtype)[:, :vocab]
    logits[1] = 2.0
    logits[2] = -torch.inf
    expected = logits.float().argmax(-1)
    expected[1] = 0
    expected[2] = 0
    assert torch.equal(draw(logits, backend="triton"), expected)
    assert torch.equal(draw(logits, backend="torch")[[0, 3, 4]], expected[[0, 3, 4]])


def test_many_chunks(monkeypatch: pytest.MonkeyPatch, triton_device: str) -> None:
    from baton.kernels.sampling import launch

    small = replace(launch._DEFAULT, block_v=16, target_programs=1000)
    monkeypatch.setattr(launch, "_DEFAULT", small)
    logits = torch.randn(4, VOCAB, device=triton_device)
    noise = noise_of(4, [0.0, 1.0, 0.5, 3.0], triton_device)
    assert torch.equal(draw(logits, backend="triton"), logits.argmax(-1))
    expected = draw(logits, noise, backend="torch")
    assert torch.equal(draw(logits, noise, backend="triton"), expected)


@pytest.mark.parametrize("temperatures", [[0.0, 0.7, 1.0, 50.0], [1.0] * 4])
def test_noise(temperatures: list[float], triton_device: str) -> None:
    for _ in range(3):
        logits = torch.randn(4, VOCAB, device=triton_device)
        noise = noise_of(4, temperatures, triton_device)
        expected = draw(logits, noise, backend="torch")
        assert torch.equal(draw(logits, noise, backend="triton"), expected)


FILTERS: dict[str, dict[str, list[Any]]] = {
    "top-k": {"min_ps": [0.0] * 3, "top_ks": [1, 5, 299], "top_ps": [1.0] * 3},
    "top-p": {"min_ps": [0.0] * 3, "top_ks": [VOCAB] * 3, "top_ps": [0.01, 0.5, 0.95]},
    "min-p": {"min_ps": [0.5, 0.1, 1.0], "top_ks": [VOCAB] * 3, "top_ps": [1.0] * 3},
    "all": {"min_ps": [0.01, 0.0, 0.001], "top_ks": [5, 40, 2], "top_ps": [0.5, 0.9, 0.3]},
}


@pytest.mark.parametrize("values", FILTERS.values(), ids=FILTERS.keys())
def test_filters(values: dict[str, list[Any]], triton_device: str) -> None:
    filters = filters_of(triton_device, [0, 2, 3], **values)
    for scale in (0.1, 1.0, 6.0):
        logits = torch.randn(5, VOCAB, device=triton_device) * scale
        # ties at every cut
        logits = (logits * 4).round() / 4
        noise = noise_of(5, [1.5, 0.0, 0.3, 4.0, 1.0], triton_device)
        before = logits.clone()
        expected = draw(logits, noise, filters, backend="torch")
        assert torch.equal(draw(logits, noise, filters, backend="triton"), expected)
        assert torch.equal(logits, before)


def test_all_rows_filtered_follow_the_distribution(triton_device: str) -> None:
    """Frequencies of many draws of one row, against the filtered softmax."""
    rows = 2000 if triton_device == "cuda" else 300
    probs = torch.tensor([0.4, 0.3, 0.2, 0.1], device=triton_device)
    logits = torch.full((rows, VOCAB), -20.0, device=triton_device)
    logits[:, 10:14] = probs.log()
    noise = noise_of(rows, [1.0] * rows, triton_device)
    filters = filters_of(
        triton_device, list(range(rows)), [0.0] * rows, [VOCAB] * rows, [0.85] * rows
    )
    drawn = draw(logits, noise, filters, backend="triton")
    counts = drawn.bincount(minlength=VOCAB)[10:14] / rows
    expected = torch.tensor([4 / 9, 3 / 9, 2 / 9, 0.0], device=triton_device)
    assert (counts - expected).abs().max() < 4 * (0.25 / rows) ** 0.5


def good() -> dict[str, Any]:
    return {
        "logits": torch.randn(2, VOCAB),
        "noise": noise_of(2, [1.0, 1.0], "cpu"),
        "filters": filters_of("cpu", [1], [0.0], [3], [1.0]),
    }


def _replaced(name: str, field: str, value: Tensor) -> dict[str, Any]:
    values = good()
    return {name: replace(values[name], **{field: value})}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, VOCAB, dtype=torch.int32)}, "logits"),
        ({"noise": None}, "noise"),
        (_replaced("noise", "row_keys", torch.zeros(2, 3, dtype=torch.int32)), "row_keys"),
        (_replaced("noise", "token_keys", torch.zeros(3, dtype=torch.int32)), "token_keys"),
        (_replaced("noise", "temperatures", torch.zeros(3)), "temperatures"),
        (_replaced("filters", "top_ks", torch.zeros(1)), "top_ks"),
    ],
)
def test_rejects(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(**{**good(), **change})
