"""Models with adapters merged into their weights, as plain folders: what serving must equal."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from baton.engine.adapters.folder import read_adapter
from baton.engine.adapters.projections import EMBEDDING


def save_merged(base: Path, adapter: Path, folder: Path) -> Path:
    """`base` with W + scaling B A in place of every W that the adapter changes; ties are untied."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    weights.setdefault("lm_head.weight", weights[f"{EMBEDDING}.weight"].clone())
    for module in read_adapter(str(adapter)).modules:
        a, b = torch.from_numpy(module.a.floats()), torch.from_numpy(module.b.floats())
        delta = module.scaling * b @ a
        weights[f"{module.name}.weight"] += delta.t() if module.name == EMBEDDING else delta
    save_file(weights, folder / "model.safetensors")
    return folder
