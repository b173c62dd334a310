"""How many KV blocks fit: as configured, or as measured on the GPU."""

from __future__ import annotations

from typing import Final

import torch

from baton.engine.config import EngineConfig
from baton.engine.device import Platform
from baton.engine.graphs import decode_buckets
from baton.engine.kv_pool import KVPool
from baton.engine.models.forward_batch import ForwardBatch
from baton.engine.models.layers import CausalLM
from baton.kvtransfer.layout import KVLayout
from baton.protos.errors import ConfigError

DEFAULT_GRAPH_ROWS: Final = 512
DEFAULT_GRAPH_TOKENS: Final = 2048
# What a captured graph takes beside its tensors: nodes, and its part of the pool's fragments.
BYTES_A_GRAPH: Final = 6 << 20


def graph_rows(config: EngineConfig, platform: Platform) -> int:
    """Decodes up to which steps are padded to a captured shape."""
    default = DEFAULT_GRAPH_ROWS if platform.is_cuda else 0
    wanted = default if config.graph_max_rows is None else config.graph_max_rows
    return min(wanted, config.max_running)


def graph_tokens(config: EngineConfig, platform: Platform) -> int:
    """Tokens of prompts and decodes up to which steps are padded to a captured shape."""
    default = DEFAULT_GRAPH_TOKENS if platform.is_cuda else 0
    wanted = default if config.graph_max_tokens is None else config.graph_max_tokens
    return min(wanted, config.max_step_tokens)


def pool_blocks(config: EngineConfig, layout: KVLayout, model: CausalLM, platform: Platform) -> int:
    """`num_blocks` if set; else what `kv_cache_bytes` hold (CPU), or free memory does (CUDA).

    Raises ConfigError where the GPU has no room for a block beside model and activations.
    """
    if config.num_blocks is not None:
        return config.num_blocks
    if not platform.is_cuda:
        # All ranks' pools together.
        return config.kv_cache_bytes // (layout.block_bytes * layout.tp_size)
    with torch.cuda.device(platform.device):
        return _measured_blocks(config, layout, model, platform)


def _measured_blocks(
    config: EngineConfig, layout: KVLayout, model: CausalLM, platform: Platform
) -> int:
    """What the configured part of the GPU leaves beside what is on it, a full step's activations,
    the graphs' and the penalties' counts."""
    activations = _activation_bytes(config.max_step_tokens, config, layout, model)
    graphs = 0
    tokens, rows = graph_tokens(config, platform), graph_rows(config, platform)
    if tokens or rows:
        graphs = _activation_bytes(max(tokens, rows), config, layout, model)
        ladders = 2 if config.max_loras else 1
        graphs += BYTES_A_GRAPH * (len(decode_buckets(rows)) + 20) * ladders
        graphs += max(rows, 1) * model.spec.vocab_size * 2
    counts = config.max_running * model.spec.vocab_size * torch.int32.itemsize
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    held = total - free
    budget = int(total * config.gpu_memory_utilization)
    left = budget - held - activations - graphs - counts
    if left < layout.block_bytes:
        gib = 1 << 30
        raise ConfigError(
            f"gpu_memory_utilization {config.gpu_memory_utilization} of {total / gib:.1f} GiB is"
            f" {budget / gib:.1f} GiB, but model and others on {platform.device} take"
            f" {held / gib:.1f}, activations {activations / gib:.1f} and graphs"
            f" {graphs / gib:.1f}: nothing is left for KV. Raise it, lower max_step_tokens"
            f" ({config.max_step_tokens}), or use a larger GPU or more of them",
            param="gpu_memory_utilization",
        )
    return left // layout.block_bytes


@torch.inference_mode()
def _activation_bytes(
    num_tokens: int, config: EngineConfig, layout: KVLayout, model: CausalLM
) -> int:
    """Peak memory of a step of so many tokens, one prompt, on a throwaway pool."""
    device = model.embed.device
    num_tokens = min(num_tokens, model.cos_sin.shape[0])
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    num_blocks = layout.num_blocks_for(num_tokens)
    pool = KVPool(layout, num_blocks, device)
    places = torch.arange(num_tokens, device=device)
    batch = ForwardBatch(
        kv_layers=pool.layers,
        kv_scales=pool.scales,
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
    # As the sampler does for rows with penalties.
    model.logits(hidden[: config.max_running]).float()
    torch.cuda.synchronize()
    peak = int(torch.cuda.max_memory_allocated()) - before - pool.tensor.nbytes
    return peak + _shrunk_bytes(num_tokens, config)


def _shrunk_bytes(num_tokens: int, config: EngineConfig) -> int:
    """What adapters keep of a projection's tokens: float32, three slices, up to 16 parts of few."""
    if not config.max_loras:
        return 0
    parts = max(16 * min(num_tokens, 256), 4 * num_tokens)
    return parts * 3 * (config.max_lora_rank + 8) * torch.float32.itemsize
