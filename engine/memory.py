"""How many KV blocks fit: as configured, or as measured on the GPU."""

from __future__ import annotations

from typing import Final

import torch

from baton.engine.config import EngineConfig
from baton.engine.device import Platform
from baton.engine.kv_pool import KVPool
from baton.engine.models.forward_batch import ForwardBatch
from baton.engine.models.layers import CausalLM
from baton.kvtransfer.layout import KVLayout

# Left to the driver, fragmentation and libraries that allocate for themselves.
SPARE_FRACTION: Final = 0.08


def pool_blocks(config: EngineConfig, layout: KVLayout, model: CausalLM, platform: Platform) -> int:
    """`num_blocks` if set; else what `kv_cache_bytes` hold (CPU), or free memory does (CUDA)."""
    if config.num_blocks is not None:
        return config.num_blocks
    if not platform.is_cuda:
        # All ranks' pools together.
        return config.kv_cache_bytes // (layout.block_bytes * layout.tp_size)
    with torch.cuda.device(platform.device):
        return max(_free_bytes(config, layout, model, platform), 0) // layout.block_bytes


@torch.inference_mode()
def _free_bytes(config: EngineConfig, layout: KVLayout, model: CausalLM, platform: Platform) -> int:
    """Bytes left for KV on the GPU beside a full step's activations and the penalties' counts.

    Runs the largest step on a throwaway pool, and sorts its logits as a full batch of top-p rows
    would.
    """
    device = platform.device
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    num_tokens = min(config.max_step_tokens, model.cos_sin.shape[0])
    num_blocks = layout.num_blocks_for(num_tokens)
    pool = KVPool(layout, num_blocks, device)
    places = torch.arange(num_tokens, device=device)
    batch = ForwardBatch(
        kv_layers=pool.layers,
        positions=places,
        slot_mapping=places,
        query_start=torch.tensor([0, num_tokens], dtype=torch.int32, device=device),
        context_lens=torch.tensor([num_tokens], dtype=torch.int32, device=device),
        block_tables=torch.arange(num_blocks, dtype=torch.int32, device=device)[None],
        max_query_len=num_tokens,
        max_context_len=num_tokens,
        plans={},
    )
    hidden = model.forward(torch.zeros(num_tokens, dtype=torch.int32, device=device), batch)
    logits = model.logits(hidden[: config.max_running])
    logits.float()
    torch.cuda.synchronize()
    activations = torch.cuda.max_memory_allocated() - before - pool.tensor.nbytes
    del pool, batch, hidden, logits
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    counts = config.max_running * model.spec.vocab_size * torch.int32.itemsize
    return int(free - SPARE_FRACTION * total) - activations - counts
