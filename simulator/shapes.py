"""Time models of any dense model on any GPU: the measured ones of 8B on one H100, scaled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from baton.protos.errors import ConfigError
from baton.router.times import H100_8B, ModelTimes, WorkerTimes

# What vLLM 0.26 took of an H100's memory, and what it needed beside weights and KV.
_USED_SHARE: Final = 0.9
_OVERHEAD_BYTES: Final = 2.4 * 2**30
# Each doubling of a worker's GPUs: the share of its speed that collectives leave.
_TENSOR_PARALLEL_SHARE: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder with grouped-query attention. `bytes_per_weight` is 2 for bfloat16."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    bytes_per_weight: float = 2.0

    @classmethod
    def read(cls, path: Path) -> ModelShape:
        """From a Hugging Face folder, or its config.json. Raises ConfigError naming what lacks."""
        file = path / "config.json" if path.is_dir() else path
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"model {file}: {error}", param="model") from None
        heads = _count(raw, "num_attention_heads", file)
        hidden = _count(raw, "hidden_size", file)
        return cls(
            layers=_count(raw, "num_hidden_layers", file),
            hidden=hidden,
            intermediate=_count(raw, "intermediate_size", file),
            heads=heads,
            kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or hidden // heads,
            vocab=_count(raw, "vocab_size", file),
            tied=bool(raw.get("tie_word_embeddings", False)),
        )

    @property
    def layer_weights(self) -> int:
        """Weights that every token passes, the output projection excepted."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def step_bytes(self) -> float:
        """What a decode step reads beside KV."""
        return (self.layer_weights + self.vocab * self.hidden) * self.bytes_per_weight

    @property
    def all_bytes(self) -> float:
        """Memory of all weights."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return (self.layer_weights + embeddings) * self.bytes_per_weight

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Peak bfloat16 FLOP/s without sparsity, memory bytes/s and bytes of one card."""

    name: str
    flops: float
    bytes_per_s: float
    memory_bytes: float


GPUS: Final[Mapping[str, Gpu]] = MappingProxyType(
    {
        "h100": Gpu(name="h100", flops=989e12, bytes_per_s=3.35e12, memory_bytes=79.6 * 2**30),
        "h200": Gpu(name="h200", flops=989e12, bytes_per_s=4.8e12, memory_bytes=140 * 2**30),
        "a100": Gpu(name="a100", flops=312e12, bytes_per_s=2.04e12, memory_bytes=79.2 * 2**30),
        "l40s": Gpu(name="l40s", flops=362e12, bytes_per_s=0.864e12, memory_bytes=44.5 * 2**30),
    }
)
LLAMA_8B: Final = ModelShape(
    layers=32,
    hidden=4096,
    intermediate=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=128_256,
)


def times_for(shape: ModelShape, gpu: Gpu, gpus_per_worker: int) -> tuple[ModelTimes, int]:
    """The model's times, and the KV tokens that a worker of so many GPUs holds.

    Compute-bound terms scale with FLOPs, memory-bound ones with bytes, both with the GPU's peaks;
    the share of the peaks that is reached is taken to be that of the measurement. Raises
    ConfigError where the weights do not fit.
    """
    base, base_gpu = LLAMA_8B, GPUS["h100"]
    doublings = gpus_per_worker.bit_length() - 1
    workers_gpus = gpus_per_worker * _TENSOR_PARALLEL_SHARE**doublings
    compute = base_gpu.flops / (gpu.flops * workers_gpus)
    memory = base_gpu.bytes_per_s / (gpu.bytes_per_s * workers_gpus)
    layers = shape.layer_weights / base.layer_weights * compute
    pairs = shape.layers * shape.heads * shape.head_dim
    pairs_share = pairs / (base.layers * base.heads * base.head_dim) * compute
    weights = shape.step_bytes / base.step_bytes * memory
    kv = shape.kv_bytes_per_token / base.kv_bytes_per_token * memory

    def scaled(pool: WorkerTimes) -> WorkerTimes:
        prefill, decode = pool.prefill, pool.decode
        return WorkerTimes(
            prefill=replace(
                prefill,
                fixed_s=prefill.fixed_s * weights,
                per_token_s=prefill.per_token_s * layers,
                per_pair_s=prefill.per_pair_s * pairs_share,
                per_row_s=prefill.per_row_s * layers,
            ),
            decode=replace(
                decode,
                fixed_s=decode.fixed_s * weights,
                per_row_s=decode.per_row_s * layers,
                per_kv_token_s=decode.per_kv_token_s * kv,
            ),
        )

    times = replace(
        H100_8B,
        prefill_pool=scaled(H100_8B.prefill_pool),
        decode_pool=scaled(H100_8B.decode_pool),
        kv_bytes_per_token=shape.kv_bytes_per_token,
        source=f"scaled from 8B on one H100 to {gpus_per_worker} x {gpu.name}",
    )
    room = gpus_per_worker * (gpu.memory_bytes * _USED_SHARE - _OVERHEAD_BYTES) - shape.all_bytes
    kv_tokens = int(room // shape.kv_bytes_per_token)
    if kv_tokens < 1024:
        raise ConfigError(
            f"the weights take {shape.all_bytes / 2**30:.0f} GiB, which leaves no room for KV on "
            f"{gpus_per_worker} x {gpu.name}: give a worker more GPUs",
            param="gpus-per-worker",
        )
    return times, kv_tokens


def _count(raw: Mapping[str, Any], name: str, file: Path) -> int:
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"model {file}: {name} is {value!r}, not a positive integer")
    return value
