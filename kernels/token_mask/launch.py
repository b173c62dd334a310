"""Launches the token mask's kernel."""

from dataclasses import dataclass

from torch import Tensor

from baton.kernels.launch_config import LaunchConfig, next_power_of_2, tuned_config
from baton.kernels.token_mask.kernel import token_mask_kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMaskConfig(LaunchConfig):
    """Tokens of a row that one program covers, a power of two."""

    block_v: int = 4096


_DEFAULT = TokenMaskConfig(num_warps=4, num_stages=1)


def token_mask_triton(logits: Tensor, bitmask: Tensor, rows: Tensor) -> None:
    """Arguments as the public operator's."""
    vocab = logits.shape[1]
    if not len(rows) or not vocab:
        return
    config = tuned_config("token_mask", "token_mask", _DEFAULT, logits.device)
    block_v = min(config.block_v, next_power_of_2(vocab))
    token_mask_kernel[(len(rows), -(-vocab // block_v))](
        logits,
        bitmask,
        rows,
        logits.stride(0),
        bitmask.shape[1],
        vocab,
        BV=block_v,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
