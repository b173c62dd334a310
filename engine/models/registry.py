"""Architecture names to models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from baton.engine.model_info import ModelSpec
from baton.engine.models.layers import CausalLM, DecoderLayer
from baton.engine.models.llama import llama_layer
from baton.engine.models.mistral import mistral_layer
from baton.engine.models.qwen2 import qwen2_layer
from baton.engine.models.qwen3 import qwen3_layer
from baton.engine.models.rope import inverse_frequencies
from baton.engine.models.weights import Weights
from baton.kernels.rotary_cache import build_cos_sin

BuildLayer = Callable[[Weights, ModelSpec, int], DecoderLayer]

# The names are those of `model_info.SUPPORTED`, which refuses others while reading config.json.
LAYERS: Final[Mapping[str, BuildLayer]] = MappingProxyType(
    {
        "LlamaForCausalLM": llama_layer,
        "MistralForCausalLM": mistral_layer,
        "Qwen2ForCausalLM": qwen2_layer,
        "Qwen3ForCausalLM": qwen3_layer,
    }
)


def build_model(weights: Weights, spec: ModelSpec, max_model_len: int) -> CausalLM:
    """A model for positions [0, max_model_len), its tensors allocated but not filled."""
    build_layer = LAYERS[spec.architecture]
    frequencies = inverse_frequencies(spec.rope, spec.head_dim)
    cos_sin = build_cos_sin(frequencies, max_model_len).to(weights.platform.device)
    layers = [build_layer(weights, spec, layer) for layer in range(spec.num_layers)]
    return CausalLM(weights, spec, layers, cos_sin)
