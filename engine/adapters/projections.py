"""Which modules of a model an adapter can change, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from baton.engine.model_info import ModelSpec

EMBEDDING: Final = "model.embed_tokens"
HEAD: Final = "lm_head"
ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP: Final = ("gate_proj", "up_proj", "down_proj")
KINDS: Final = (*ATTENTION, *MLP, "embed_tokens", HEAD)


class Shape(NamedTuple):
    """Of a module's weight: `out` features from `width` ones. An embedding's `width` is the
    vocabulary."""

    out: int
    width: int


def projections(spec: ModelSpec) -> Mapping[str, Shape]:
    """Every module that an adapter can name, by its name in the checkpoint."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.num_query_features, spec.num_kv_features
    shapes = {
        "self_attn.q_proj": Shape(queries, hidden),
        "self_attn.k_proj": Shape(keys, hidden),
        "self_attn.v_proj": Shape(keys, hidden),
        "self_attn.o_proj": Shape(hidden, queries),
        "mlp.gate_proj": Shape(inner, hidden),
        "mlp.up_proj": Shape(inner, hidden),
        "mlp.down_proj": Shape(hidden, inner),
    }
    layers = {
        f"model.layers.{layer}.{name}": shape
        for layer in range(spec.num_layers)
        for name, shape in shapes.items()
    }
    return {
        EMBEDDING: Shape(hidden, spec.vocab_size),
        **layers,
        HEAD: Shape(spec.vocab_size, hidden),
    }
