"""Muon for the matrices, AdamW for the rest."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def orthogonalize(matrices: Tensor, num_steps: int = 5) -> Tensor:
    """Push the singular values of each matrix [count, rows, columns] towards one.

    The quintic Newton-Schulz iteration of Muon, on the side of the shorter dimension.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


def orthogonalize_shared(matrices: Tensor) -> Tensor:
    """Do `orthogonalize` with the matrices dealt out among the processes of the run."""
    if not dist.is_initialized():
        return orthogonalize(matrices)
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    result = torch.zeros_like(matrices)
    if matrices[mine].shape[0]:
        result[mine] = orthogonalize(matrices[mine])
    dist.all_reduce(result)
    return result


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; matrices of one shape are handled together."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every matrix."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for param in group["params"]:
                by_shape.setdefault(param.shape, []).append(param)
            for params in by_shape.values():
                self._update(params, group["lr"], group["momentum"], group["weight_decay"])

    def _update(
        self, params: list[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        looked_ahead = []
        for param in params:
            state = self.state[param]
            if not state:
                state["momentum"] = torch.zeros_like(param)
            state["momentum"].lerp_(param.grad, 1 - momentum)
            looked_ahead.append(param.grad.lerp(state["momentum"], momentum))
        updates = orthogonalize_shared(torch.stack(looked_ahead))
        rows, columns = params[0].shape
        scale = max(1.0, rows / columns) ** 0.5
        for param, update in zip(params, updates, strict=True):
            param.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * scale)


def make_optimizers(
    model: nn.Module, *, matrix_lr: float, other_lr: float, weight_decay: float = 0.05
) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices, and AdamW for the embedding and the norms."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in named if p.ndim != 2 or "embed" in n]
    return [
        Muon(matrices, lr=matrix_lr, momentum=0.95, weight_decay=weight_decay),
        torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
