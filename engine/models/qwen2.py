"""Qwen2 and Qwen2.5: biases on queries, keys and values only."""

from __future__ import annotations

from baton.engine.model_info import ModelSpec
from baton.engine.models.layers import Attention, DecoderLayer, GatedMLP
from baton.engine.models.weights import Weights


def qwen2_layer(weights: Weights, spec: ModelSpec, layer: int) -> DecoderLayer:
    """The biases are part of the architecture: its configuration does not mention them."""
    attention = Attention(weights, spec, layer, qkv_bias=True, o_bias=False)
    return DecoderLayer(weights, spec, layer, attention, GatedMLP(weights, spec, layer))
