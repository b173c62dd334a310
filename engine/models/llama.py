"""Llama 2 and 3.x."""

from __future__ import annotations

from baton.engine.model_info import ModelSpec
from baton.engine.models.layers import Attention, DecoderLayer, GatedMLP
from baton.engine.models.weights import Weights


def llama_layer(weights: Weights, spec: ModelSpec, layer: int) -> DecoderLayer:
    """Biases are off in the released models, and where `attention_bias` and `mlp_bias` say."""
    bias = spec.attention_bias
    attention = Attention(weights, spec, layer, qkv_bias=bias, o_bias=bias)
    mlp = GatedMLP(weights, spec, layer, bias=spec.mlp_bias)
    return DecoderLayer(weights, spec, layer, attention, mlp)
