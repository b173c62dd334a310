"""Where and in what precision a model runs: the one place that resolves `auto`."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

from baton.engine.model_info import ModelSpec
from baton.protos.errors import ConfigError

DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Platform(NamedTuple):
    """A resolved device and the dtype of weights, activations and KV."""

    device: torch.device
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        """torch's name without the prefix, such as "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"


def resolve_platform(device: str, dtype: str) -> Platform:
    """`auto`: CUDA where there is a GPU, bfloat16 there and float32 on CPU. Raises ConfigError."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name, _, index = device.partition(":")
    if name not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ConfigError(
            f"device is {device!r}, but must be auto, cpu, cuda or cuda:N", param="device"
        )
    if name == "cpu":
        resolved = torch.device("cpu")
    elif not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}, but torch sees no GPU; use cpu", param="device")
    elif int(index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {device!r}, but there are {torch.cuda.device_count()} GPUs", param="device"
        )
    else:
        resolved = torch.device("cuda", int(index) if index else torch.cuda.current_device())
    if dtype == "auto":
        dtype = "bfloat16" if resolved.type == "cuda" else "float32"
    if dtype not in DTYPES:
        raise ConfigError(
            f"dtype is {dtype!r}, but must be auto, {', '.join(DTYPES)}", param="dtype"
        )
    return Platform(resolved, DTYPES[dtype])


# Compute capability from which bfloat16 and the kernels' asynchronous copies are in hardware.
MIN_CAPABILITY: Final = (8, 0)
MAX_HEAD_DIM: Final = 256


def check_device(platform: Platform, spec: ModelSpec) -> None:
    """Refuses what the kernels cannot do: an older GPU, a head size. Raises ConfigError."""
    if not platform.is_cuda:
        return
    capability = torch.cuda.get_device_capability(platform.device)
    if capability < MIN_CAPABILITY:
        raise ConfigError(
            f"device is {platform.device} with compute capability {capability[0]}.{capability[1]},"
            f" but the kernels need {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]} or later; use cpu",
            param="device",
        )
    if spec.head_dim > MAX_HEAD_DIM or spec.head_dim % 8:
        raise ConfigError(
            f"{spec.name} has heads of {spec.head_dim} elements, but the GPU's attention kernels"
            f" take multiples of 8 up to {MAX_HEAD_DIM}; use device cpu",
            param="head_dim",
        )
