"""Paged attention as the formula says it, row by row and token by token, in float32."""

import torch
from torch import Tensor


def paged_attention_reference(
    q: Tensor,
    kv: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Softmax(soft_cap(scale * q k^T)) v over each token's visible keys; shapes as the operator."""
    num_kv_heads, block_size, head_dim = kv.shape[2:]
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    starts, lens = query_start.tolist(), context_lens.tolist()
    for row, context_len in enumerate(lens):
        blocks = block_tables[row, : -(-context_len // block_size)].long()
        # [2, kv_heads, context_len, head_dim]
        pages = kv[blocks].float().permute(1, 2, 0, 3, 4)
        keys, values = pages.reshape(2, num_kv_heads, -1, head_dim)[:, :, :context_len]
        query_len = starts[row + 1] - starts[row]
        for j in range(query_len):
            position = context_len - query_len + j
            first = 0 if sliding_window is None else max(0, position - sliding_window + 1)
            if position < first:
                continue
            token = q[starts[row] + j].float().view(num_kv_heads, -1, head_dim)
            # [kv_heads, group, visible]
            scores = scale * token @ keys[:, first : position + 1].transpose(1, 2)
            if soft_cap is not None:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            mixed = scores.softmax(-1) @ values[:, first : position + 1]
            out[starts[row] + j] = mixed.reshape(-1, head_dim)
    return out.to(q.dtype)
