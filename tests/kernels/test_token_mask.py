import pytest
import torch

from baton.kernels.token_mask import token_mask


def expected(logits: torch.Tensor, bitmask: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Bit by bit, in Python."""
    want = logits.clone()
    for i, row in enumerate(rows):
        for token in range(logits.shape[1]):
            if not int(bitmask[i, token // 32]) >> (token % 32) & 1:
                want[row, token] = -torch.inf
    return want


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(
    ("vocab", "rows"), [(1, [0]), (31, [2]), (32, [0, 1, 2]), (100, [2, 0]), (1030, [1]), (65, [])]
)
def test_masks_the_named_rows_only(
    vocab: int, rows: list[int], backend: str, triton_device: str
) -> None:
    device = triton_device if backend == "triton" else "cpu"
    # A row of NaN shows what must not be read, and a stride that rows need not be adjacent.
    logits = torch.randn(3, vocab + 5)[:, :vocab].to(device)
    logits[:, 0] = torch.nan
    shape = (len(rows), -(-vocab // 32))
    bitmask = torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32).to(device)
    want = expected(logits.cpu(), bitmask.cpu(), rows)
    token_mask(
        logits, bitmask, torch.tensor(rows, dtype=torch.int64, device=device), backend=backend
    )
    assert torch.equal(logits.cpu().nan_to_num(7.0), want.nan_to_num(7.0))


def test_rejects() -> None:
    logits, rows = torch.zeros(2, 40), torch.tensor([0])
    for bad in (torch.zeros(1, 2), torch.zeros(1, 3, dtype=torch.int32)):
        with pytest.raises(ValueError, match="bitmask"):
            token_mask(logits, bad, rows)
    with pytest.raises(ValueError, match="rows"):
        token_mask(logits, torch.zeros(1, 2, dtype=torch.int32), rows.int())
    with pytest.raises(ValueError, match="logits"):
        token_mask(logits.t(), torch.zeros(1, 1, dtype=torch.int32), rows)
