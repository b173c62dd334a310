"""Reads a Hugging Face model folder's configuration into one typed, checked value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from baton.engine.rope_config import RopeConfig, read_rope
from baton.protos.errors import ModelLoadError

SUPPORTED: Final = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
# What transformers assumes for a Mistral folder that does not name its window.
MISTRAL_SLIDING_WINDOW: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The shape of a decoder, as its config.json and generation_config.json say.

    sliding_windows: per layer, how many positions a token sees (its own counted); None: all.
    attention_bias, mlp_bias: what the configuration says; what an architecture makes of it is the
        model file's business.
    dtype: of the stored weights, as the configuration states it ("" if it does not).
    """

    name: str
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    rms_norm_eps: float
    rope: RopeConfig
    sliding_windows: tuple[int | None, ...]
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    eos_token_ids: tuple[int, ...]
    dtype: str

    @property
    def num_query_features(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def num_kv_features(self) -> int:
        return self.num_kv_heads * self.head_dim


class ConfigReader:
    """Typed access to a parsed config.json. A refusal is a ModelLoadError that names the key."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def error(self, key: str, problem: str) -> ModelLoadError:
        return ModelLoadError(f"{self.where}: {key} {problem}", param=key)

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number from 1 on; `default` stands for an absent or null key."""
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.error(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(key, f"is {value!r}, but must be a whole number from 1 on")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; `default` stands for an absent or null key."""
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.error(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.error(key, f"is {value!r}, but must be a positive number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, f"is {value!r}, but must be true or false")
        return value


def read_model_spec(model_dir: str) -> ModelSpec:
    """Reads and checks `model_dir`. Raises ModelLoadError that names the file and the key."""
    folder = Path(model_dir)
    config = ConfigReader(_read_json(folder / "config.json"), str(folder / "config.json"))
    architecture = _architecture(config)
    _check_computable(config)
    num_layers = config.integer("num_hidden_layers")
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise config.error("num_key_value_heads", f"({num_kv_heads}) must divide {num_heads} heads")
    return ModelSpec(
        name=folder.resolve().name,
        architecture=architecture,
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        intermediate_size=config.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(config, architecture, num_heads),
        max_model_len=config.integer("max_position_embeddings"),
        rms_norm_eps=config.number("rms_norm_eps"),
        rope=read_rope(config.values, config.where),
        sliding_windows=_sliding_windows(config, architecture, num_layers),
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        attention_bias=config.flag("attention_bias"),
        mlp_bias=config.flag("mlp_bias"),
        eos_token_ids=_eos_token_ids(config, folder / "generation_config.json"),
        dtype=str(config.values.get("dtype") or config.values.get("torch_dtype") or ""),
    )


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(
            f"{path} cannot be read: {error.strerror}", param="model_dir"
        ) from error
    except ValueError as error:
        raise ModelLoadError(f"{path} is not JSON: {error}", param="model_dir") from error
    if not isinstance(values, dict):
        raise ModelLoadError(f"{path} must hold a JSON object", param="model_dir")
    return values


def _architecture(config: ConfigReader) -> str:
    names = config.values.get("architectures")
    if not isinstance(names, list) or not names:
        raise config.error("architectures", f"is missing; supported: {', '.join(SUPPORTED)}")
    for name in names:
        if name in SUPPORTED:
            return str(name)
    raise config.error("architectures", f"is {names}, but supported are {', '.join(SUPPORTED)}")


def _check_computable(config: ConfigReader) -> None:
    if config.values.get("quantization_config") is not None:
        raise config.error(
            "quantization_config", "is set, but only unquantized weights can be read"
        )
    if config.values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise config.error("hidden_act", f"is {config.values['hidden_act']!r}, but must be silu")


def _head_dim(config: ConfigReader, architecture: str, num_heads: int) -> int:
    hidden_size = config.integer("hidden_size")
    if config.values.get("head_dim") is not None:
        head_dim = config.integer("head_dim")
    elif architecture == "Qwen3ForCausalLM":
        # Qwen3's heads are not hidden_size / heads, so a folder that does not say is ambiguous.
        raise config.error("head_dim", "is missing")
    elif hidden_size % num_heads:
        raise config.error(
            "hidden_size", f"({hidden_size}) must be a multiple of {num_heads} heads"
        )
    else:
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        raise config.error("head_dim", f"is {head_dim}, but rotary embedding needs an even one")
    return head_dim


def _sliding_windows(
    config: ConfigReader, architecture: str, num_layers: int
) -> tuple[int | None, ...]:
    if architecture == "MistralForCausalLM":
        if "sliding_window" in config.values and config.values["sliding_window"] is None:
            return (None,) * num_layers
        return (config.integer("sliding_window", MISTRAL_SLIDING_WINDOW),) * num_layers
    if architecture == "LlamaForCausalLM" or not config.flag("use_sliding_window"):
        return (None,) * num_layers
    window = config.integer("sliding_window")
    kinds = config.values.get("layer_types")
    if kinds is None:
        first = config.integer("max_window_layers")
        return tuple(window if layer >= first else None for layer in range(num_layers))
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != num_layers or not set(kinds) <= set(known):
        raise config.error("layer_types", f"must name {' or '.join(known)} for {num_layers} layers")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _eos_token_ids(config: ConfigReader, generation_path: Path) -> tuple[int, ...]:
    """Ids of both files together: a generation config often names more ends than the model's."""
    sources = [config]
    if generation_path.exists():
        sources.append(ConfigReader(_read_json(generation_path), str(generation_path)))
    found: list[int] = []
    for source in sources:
        value = source.values.get("eos_token_id")
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for token_id in ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
                raise source.error("eos_token_id", f"is {value!r}, but must be token ids")
            if token_id not in found:
                found.append(token_id)
    return tuple(found)
