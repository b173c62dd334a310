"""Batches for paged attention, shared by interpreter, CPU and GPU tests."""

from dataclasses import dataclass

import torch
from torch import Tensor

from baton.kernels.paged_attention.problem import Problem
from baton.kernels.paged_attention.reference import paged_attention_reference

BLOCK_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class AttentionCase:
    name: str
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    kv_heads: int = 1
    group: int = 2
    head_dim: int = 64
    sliding_window: int | None = None
    soft_cap: float | None = None
    block_size: int = BLOCK_SIZE

    def __str__(self) -> str:
        return self.name


def _decodes(name: str, context_lens: tuple[int, ...], **fields: object) -> AttentionCase:
    ones = (1,) * len(context_lens)
    return AttentionCase(name=name, query_lens=ones, context_lens=context_lens, **fields)  # type: ignore[arg-type]


LENGTHS = (1, 15, 16, 17, 63, 129)
CASES = (
    _decodes("decode-lengths-group4", LENGTHS, group=4),
    _decodes("decode-group1-kv4", (17,), kv_heads=4, group=1, head_dim=32),
    _decodes("decode-group2-kv8", (17,), kv_heads=8, group=2, head_dim=32),
    _decodes("decode-group7-dim128", (63, 129), group=7, head_dim=128),
    _decodes("decode-dim80", (33,), head_dim=80),
    _decodes("decode-padding-row", (17, 0)),
    _decodes("decode-window", (5, 20, 129), sliding_window=20),
    _decodes("decode-window1", (1, 17), sliding_window=1),
    _decodes("decode-cap", (63,), soft_cap=2.0),
    AttentionCase(name="prefill-lengths", query_lens=LENGTHS[:5], context_lens=LENGTHS[:5]),
    AttentionCase(name="prefill-129", query_lens=(129,), context_lens=(129,), group=1, head_dim=32),
    AttentionCase(name="prefill-prefix", query_lens=(5, 16), context_lens=(21, 129), group=4),
    AttentionCase(
        name="prefill-group7-dim128", query_lens=(17,), context_lens=(33,), group=7, head_dim=128
    ),
    AttentionCase(
        name="prefill-kv4", query_lens=(15,), context_lens=(31,), kv_heads=4, head_dim=32
    ),
    AttentionCase(name="prefill-kv8", query_lens=(3,), context_lens=(17,), kv_heads=8, head_dim=32),
    AttentionCase(
        name="prefill-window", query_lens=(40, 3), context_lens=(129, 90), sliding_window=33
    ),
    AttentionCase(name="prefill-cap", query_lens=(17,), context_lens=(63,), soft_cap=2.0),
    AttentionCase(
        name="prefill-window-cap",
        query_lens=(20,),
        context_lens=(70,),
        sliding_window=7,
        soft_cap=5.0,
    ),
    AttentionCase(name="empty-rows", query_lens=(0, 3, 0), context_lens=(17, 3, 0)),
    AttentionCase(name="mixed", query_lens=(1, 17, 0, 1, 3), context_lens=(63, 17, 5, 129, 40)),
    AttentionCase(
        name="mixed-window-cap",
        query_lens=(1, 17, 1),
        context_lens=(63, 40, 2),
        kv_heads=2,
        head_dim=32,
        sliding_window=20,
        soft_cap=5.0,
    ),
)


class AttentionInputs:
    """The tensors of a case: q a view of a merged qkv, kv one layer's view of a block-major pool.

    Slots that no context covers, other layers and the rest of qkv are NaN; table entries past a
    row's context are -1.
    """

    def __init__(self, case: AttentionCase, dtype: torch.dtype, device: str = "cpu") -> None:
        self.case = case
        rows, block_size = len(case.query_lens), case.block_size
        row_blocks = max(1, max(-(-n // block_size) for n in case.context_lens))
        num_blocks = rows * row_blocks + 3
        pool = torch.full(
            (num_blocks, 3, 2, case.kv_heads, block_size, case.head_dim), torch.nan, dtype=dtype
        )
        tables = torch.randperm(num_blocks)[: rows * row_blocks].view(rows, row_blocks).int()
        for row, context_len in enumerate(case.context_lens):
            slots = torch.arange(context_len)
            blocks = tables[row].long()[slots // block_size]
            content = torch.randn(context_len, 2, case.kv_heads, case.head_dim).to(dtype)
            pool[blocks, 1, :, :, slots % block_size] = content
            tables[row, -(-context_len // block_size) :] = -1
        q_heads = case.kv_heads * case.group
        qkv = torch.full(
            (sum(case.query_lens), q_heads + 2 * case.kv_heads, case.head_dim), torch.nan
        ).to(dtype)
        qkv[:, :q_heads] = torch.randn(qkv[:, :q_heads].shape).to(dtype)
        self.q = qkv.to(device)[:, :q_heads]
        self.kv = pool.to(device)[:, 1]
        starts = torch.tensor((0, *case.query_lens)).cumsum(0)
        self.query_start = starts.to(torch.int32).to(device)
        self.context_lens = torch.tensor(case.context_lens, dtype=torch.int32, device=device)
        self.block_tables = tables.to(device)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.q, self.kv, self.query_start, self.context_lens, self.block_tables

    @property
    def options(self) -> dict[str, float | int | None]:
        """Keyword arguments of the public operator."""
        return {
            "scale": self.case.head_dim**-0.5,
            "max_query_len": max(self.case.query_lens),
            "max_context_len": max(self.case.context_lens),
            "sliding_window": self.case.sliding_window,
            "soft_cap": self.case.soft_cap,
        }

    def problem(self) -> Problem:
        """The same as the kernels' launchers take it."""
        return Problem(
            q=self.q,
            kv=self.kv,
            query_start=self.query_start,
            context_lens=self.context_lens,
            block_tables=self.block_tables,
            kv_scale=None,
            scale=self.case.head_dim**-0.5,
            sliding_window=self.case.sliding_window,
            soft_cap=self.case.soft_cap,
        )

    def expected(self) -> Tensor:
        """The reference's float32 output."""
        _, _, query_start, context_lens, block_tables = self.tensors
        return paged_attention_reference(
            self.q.float(),
            self.kv.float(),
            query_start,
            context_lens,
            block_tables,
            scale=self.case.head_dim**-0.5,
            sliding_window=self.case.sliding_window,
            soft_cap=self.case.soft_cap,
        )
