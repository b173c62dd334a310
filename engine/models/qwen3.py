"""Qwen3 (dense): queries and keys are normalised per head before rotation."""

from __future__ import annotations

from baton.engine.model_info import ModelSpec
from baton.engine.models.layers import Attention, DecoderLayer, GatedMLP
from baton.engine.models.weights import Weights


def qwen3_layer(weights: Weights, spec: ModelSpec, layer: int) -> DecoderLayer:
    """`attention_bias` is off in the released models."""
    bias = spec.attention_bias
    attention = Attention(weights, spec, layer, qkv_bias=bias, o_bias=bias, qk_norm=True)
    return DecoderLayer(weights, spec, layer, attention, GatedMLP(weights, spec, layer))
