"""What a forward pass knows of its batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from baton.kernels.lora import LoraBatch
from baton.kernels.paged_attention import AnyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """One step's ragged batch, on the model's device; row r owns tokens query_start[r:r+2].

    kv_layers: per layer [num_blocks, 2, kv_heads, block_size, head_dim], written in place.
    positions: int64 [num_tokens], place of each token in its sequence.
    slot_mapping: int64 [num_tokens], `block_id * block_size + offset` that its KV goes to.
    query_start: int32 [num_rows + 1]. context_lens: int32 [num_rows], the new tokens included.
    block_tables: int32 [num_rows, max_blocks].
    max_query_len, max_context_len: host bounds on the rows' lengths.
    kv_scales: per layer float32 [2, kv_heads] where the pool holds float8; empty where it does not.
    lora: the tokens' adapters; None where none of them has one.
    plans: what attention worked out of all this, by sliding window; a missing one is made anew.
    """

    kv_layers: tuple[Tensor, ...]
    positions: Tensor
    slot_mapping: Tensor
    query_start: Tensor
    context_lens: Tensor
    block_tables: Tensor
    max_query_len: int
    max_context_len: int
    kv_scales: tuple[Tensor, ...] = ()
    plans: Mapping[int | None, AnyPlan | None]
    lora: LoraBatch | None = None
