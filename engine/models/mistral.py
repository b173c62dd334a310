"""Mistral: Llama without biases, each token seeing a sliding window."""

from __future__ import annotations

from baton.engine.model_info import ModelSpec
from baton.engine.models.layers import Attention, DecoderLayer, GatedMLP
from baton.engine.models.weights import Weights


def mistral_layer(weights: Weights, spec: ModelSpec, layer: int) -> DecoderLayer:
    """The window is in `spec.sliding_windows`."""
    attention = Attention(weights, spec, layer, qkv_bias=False, o_bias=False)
    return DecoderLayer(weights, spec, layer, attention, GatedMLP(weights, spec, layer))
