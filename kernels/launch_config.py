"""Launch configurations: defaults in code, tuned values per GPU in each operator's `configs/`.

A file `configs/<device name, spaces as underscores>.json` maps kernel names to the fields that
differ from the default. Nothing is tuned while serving; benchmarks write these files.
"""

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

_Config = TypeVar("_Config", bound="LaunchConfig")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LaunchConfig:
    """What every kernel launch sets; operators add their tile sizes."""

    num_warps: int = 4
    num_stages: int = 2


@cache
def tuned_config(operator: str, kernel: str, default: _Config, device: torch.device) -> _Config:
    """Return `default` with the fields that `operator`'s file for this device names.

    Raises:
        ValueError: the file names a field that the configuration lacks.
    """
    if device.type != "cuda":
        return default
    name = torch.cuda.get_device_name(device).replace(" ", "_")
    path = Path(__file__).parent / operator / "configs" / f"{name}.json"
    if not path.exists():
        return default
    fields = json.loads(path.read_text()).get(kernel, {})
    unknown = fields.keys() - {field.name for field in dataclasses.fields(default)}
    if unknown:
        raise ValueError(f"{path}: {kernel} has no field {sorted(unknown)}")
    return dataclasses.replace(default, **fields)


def next_power_of_2(n: int) -> int:
    """Smallest power of two that is at least n, and at least 1."""
    return 1 << max(n - 1, 0).bit_length()
