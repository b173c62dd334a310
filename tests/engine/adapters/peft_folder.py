"""Writes adapters as PEFT does, of random numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from baton.engine.adapters.projections import EMBEDDING, projections
from baton.engine.model_info import ModelSpec

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_tensors(
    spec: ModelSpec,
    targets: Sequence[str] = ALL_LINEAR,
    rank: int = 4,
    *,
    ranks: Mapping[str, int] | None = None,
    seed: int = 0,
    size: float = 0.3,
) -> dict[str, Tensor]:
    """Tensors of every module that ends with a target; `ranks` by such an end, else `rank`."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in projections(spec).items():
        kind = name.rpartition(".")[2]
        if kind not in targets:
            continue
        r = (ranks or {}).get(kind, rank)
        a = torch.randn(r, shape.width, generator=generator) * size
        b = torch.randn(shape.out, r, generator=generator) * size
        embedding = name == EMBEDDING
        for part, value in (("A", a), ("B", b)):
            end = f"lora_embedding_{part}" if embedding else f"lora_{part}.weight"
            tensors[f"base_model.model.{name}.{end}"] = value
    return tensors


def save_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    rank: int = 4,
    targets: Sequence[str] = ALL_LINEAR,
    **config: object,
) -> Path:
    """The folder, with an adapter_config.json as PEFT 0.18 writes it, but for `config`."""
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, object] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "someone/some-model",
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 2 * rank,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": list(targets),
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_rslora": False,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    return folder
