"""Batches for the rotary and cache-write operator, shared by interpreter and GPU tests."""

from dataclasses import dataclass

import torch
from torch import Tensor

from baton.kernels.rotary_cache import build_cos_sin

BLOCK_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class RotaryCase:
    name: str
    num_tokens: int = 5
    q_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    rot_dim: int = 64
    q_norm: bool = False
    k_norm: bool = False
    skipped: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name


CASES = (
    RotaryCase(name="plain"),
    RotaryCase(name="one-token", num_tokens=1, q_heads=1, kv_heads=1, head_dim=32, rot_dim=32),
    RotaryCase(name="norms", q_norm=True, k_norm=True, head_dim=128, rot_dim=128),
    RotaryCase(name="q-norm-only", q_norm=True),
    RotaryCase(name="partial", rot_dim=32),
    RotaryCase(name="partial-norms", head_dim=80, rot_dim=20, q_norm=True, k_norm=True),
    RotaryCase(name="group7", q_heads=7, kv_heads=1, num_tokens=17),
    RotaryCase(name="kv8", q_heads=8, kv_heads=8, head_dim=32, rot_dim=32),
    RotaryCase(name="skips", skipped=(0, 3), k_norm=True),
    RotaryCase(name="all-skipped", num_tokens=2, skipped=(0, 1)),
    RotaryCase(name="no-token", num_tokens=0),
)


class RotaryInputs:
    """The tensors of a case: q, k, v views of a merged qkv, kv a layer's view of a NaN pool."""

    def __init__(self, case: RotaryCase, dtype: torch.dtype, device: str = "cpu") -> None:
        heads = case.q_heads + 2 * case.kv_heads
        qkv = torch.randn(case.num_tokens, heads, case.head_dim).to(dtype).to(device)
        self.q, self.k, self.v = qkv.split([case.q_heads, case.kv_heads, case.kv_heads], dim=1)
        num_blocks = -(-case.num_tokens // BLOCK_SIZE) + 2
        pool = torch.full((num_blocks, 3, 2, case.kv_heads, BLOCK_SIZE, case.head_dim), torch.nan)
        self.pool = pool.to(dtype).to(device)
        self.positions = torch.randint(0, 50, (case.num_tokens,), device=device)
        slots = torch.randperm(num_blocks * BLOCK_SIZE)[: case.num_tokens]
        slots[list(case.skipped)] = -1
        self.slot_mapping = slots.to(device)
        inv_freq = 10000.0 ** -(torch.arange(0, case.rot_dim, 2) / case.rot_dim)
        self.cos_sin = build_cos_sin(inv_freq, 50).to(device)
        weight = torch.randn(2, case.head_dim).to(dtype).to(device)
        self.norms = {
            "q_norm": weight[0] if case.q_norm else None,
            "k_norm": weight[1] if case.k_norm else None,
        }

    @property
    def kv(self) -> Tensor:
        return self.pool[:, 1]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (
            *(self.q, self.k, self.v, self.kv),
            *(self.positions, self.slot_mapping, self.cos_sin),
        )

    def expected(self) -> tuple[Tensor, Tensor]:
        """Float32 rotated q and whole pool, by complex multiplication, token by token."""
        pool = self.pool.float().clone()
        rotated = [self._rotated(self.q, self.norms["q_norm"], i) for i in range(self.q.shape[0])]
        for i, slot in enumerate(self.slot_mapping.tolist()):
            if slot >= 0:
                block, offset = divmod(slot, BLOCK_SIZE)
                pool[block, 1, 0, :, offset] = self._rotated(self.k, self.norms["k_norm"], i)
                pool[block, 1, 1, :, offset] = self.v[i].float()
        out = torch.stack(rotated) if rotated else self.q.float()
        return out, pool

    def _rotated(self, x: Tensor, norm: Tensor | None, i: int) -> Tensor:
        head = x[i].double()
        if norm is not None:
            head = head / (head.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.double()
        turn = self.cos_sin[self.positions[i]].double()
        half = turn.shape[0] // 2
        pairs = torch.complex(head[:, :half], head[:, half : 2 * half])
        turned = pairs * torch.complex(turn[:half], turn[half:])
        return torch.cat([turned.real, turned.imag, head[:, 2 * half :]], dim=-1).float()
