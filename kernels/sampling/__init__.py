"""Drawing tokens from logits: an argmax over logits and noise, of the tokens that filters leave."""

from dataclasses import dataclass

from torch import Tensor, float32, int32, int64

from baton.kernels.backend import Backend, runs_triton
from baton.kernels.sampling.reference import draw_reference

__all__ = ["Filters", "Noise", "draw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Gumbel noise that is a function of row key and token key alone.

    row_keys: int32 [2, rows]. token_keys: int32 [vocab].
    temperatures: float32 [rows], by which the noise is multiplied: 0 for none.
    """

    row_keys: Tensor
    token_keys: Tensor
    temperatures: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What tokens some rows may draw, all of whose temperatures are positive.

    rows: int64 [n], which rows; the others are [n] each. min_ps float32: tokens below so much of
    the likeliest one's probability are out; 0: none. top_ks int32, from 1 on: so many of the best
    are in. top_ps float32: of those, the fewest that hold so much of their mass; 1: all.
    Of equal logits the lower token id counts as the better.
    """

    rows: Tensor
    min_ps: Tensor
    top_ks: Tensor
    top_ps: Tensor


def draw(
    logits: Tensor,
    noise: Noise | None = None,
    filters: Filters | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Return the token of each row: the argmax of logits plus noise (Gumbel-max), int64 [rows].

    The token drawn follows softmax(logits / temperature) over the tokens that the filters leave.

    Args:
        logits: [rows, vocab], floating point, last stride 1; not changed.
        noise: None draws the likeliest token of every row; needed with filters.
        filters: for rows that have some.
        backend: forces an implementation; "auto" goes by the device of logits.

    Raises:
        ValueError: a shape, dtype or stride does not fit.
    """
    if logits.dim() != 2 or logits.stride(1) != 1 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating point [rows, vocab], got {logits.dtype}")
    if filters is not None and noise is None:
        raise ValueError("filters matter to a draw with noise only")
    if noise is not None:
        _check_noise(logits, noise)
    if filters is not None:
        _check_filters(filters)
    if runs_triton(logits, backend):
        from baton.kernels.sampling.launch import draw_triton

        return draw_triton(logits, noise, filters)
    return draw_reference(logits, noise, filters)


def _check_noise(logits: Tensor, noise: Noise) -> None:
    rows, vocab = logits.shape
    if noise.row_keys.shape != (2, rows) or noise.row_keys.dtype != int32:
        raise ValueError(f"row_keys must be int32 [2, {rows}], got {tuple(noise.row_keys.shape)}")
    if noise.token_keys.shape != (vocab,) or noise.token_keys.dtype != int32:
        raise ValueError(f"token_keys must be int32 [{vocab}]")
    if noise.temperatures.shape != (rows,) or noise.temperatures.dtype != float32:
        raise ValueError(f"temperatures must be float32 [{rows}]")


def _check_filters(filters: Filters) -> None:
    expected = {"rows": int64, "min_ps": float32, "top_ks": int32, "top_ps": float32}
    for name, dtype in expected.items():
        tensor: Tensor = getattr(filters, name)
        if tensor.shape != filters.rows.shape or tensor.dtype != dtype or tensor.dim() != 1:
            raise ValueError(f"{name} must be {dtype} [{filters.rows.shape[0]}]")
