"""What an engine is told when it is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from baton.kvtransfer.tiers.config import TierConfig
from baton.protos.errors import ConfigError
from baton.protos.types import Role

MAX_LORA_RANK: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """An engine's configuration. Raises ConfigError that names the field, its value and what works.

    device: auto (CUDA where there is a GPU), cpu, cuda or cuda:N.
    dtype: auto (float32 on CPU, bfloat16 on CUDA), float32, bfloat16 or float16.
    num_blocks: KV blocks of `block_size` tokens; None derives it from `kv_cache_bytes` on CPU and
        from measured free memory on CUDA.
    max_running: requests in the batch. max_waiting: requests queued for it before add() refuses.
    max_step_tokens: tokens computed in one step, which decodes and chunks of prompts share; at
        least `max_running` + 1, so that prompts advance beside a full batch of decodes.
    max_model_len: tokens of prompt and output together; None: what the model supports.
    expected_output_tokens: what outputs are expected to be long, until some have ended: prompts are
        admitted where blocks for the running ones' are left. 0: where one for each is.
    kv_cache_dtype: auto (that of the weights) or fp8_e4m3, half the bytes.
    gpu_memory_utilization: part of the GPU's memory that weights, activations and KV may take.
    graph_max_rows, graph_max_tokens: steps of up to so many decodes, or tokens of prompts and
        decodes, are padded to the next of a few shapes, which CUDA captures as graphs when it
        starts. 0: none; None: 512 rows and 2,048 tokens on CUDA, none on CPU, where they would only
        be padded.
    kv_tiers: where blocks are kept that the pool evicts, see docs/kv_tiers.md.
    overlap: launch a step before the one before it is read, which hides the host's work behind the
        device's; None: where steps run beside the host, on CUDA.
    tensor_parallel_size: ranks that share the model, each on a GPU of its own (device auto or
        cuda); what divides the model's heads works, see docs/tensor_parallel.md.
    max_loras: adapters on the device at a time, each with room for one of `max_lora_rank` (up to
        256); 0: none can be loaded. max_cpu_loras: that can be loaded, in CPU memory.
    random_weights: random weights of the right shapes instead of the folder's, for benchmarks.
    self_check: prove that no block is lost whenever the engine becomes idle (tests, debugging).
    """

    model_dir: str
    role: Role = Role.BOTH
    device: str = "auto"
    dtype: str = "auto"
    block_size: int = 16
    num_blocks: int | None = None
    kv_cache_bytes: int = 256 << 20
    max_running: int = 64
    max_waiting: int = 1024
    max_step_tokens: int = 512
    max_model_len: int | None = None
    expected_output_tokens: int = 256
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float = 0.9
    graph_max_rows: int | None = None
    graph_max_tokens: int | None = None
    prefix_cache: bool = True
    kv_tiers: TierConfig = field(default_factory=TierConfig)
    overlap: bool | None = None
    tensor_parallel_size: int = 1
    max_loras: int = 0
    max_cpu_loras: int = 128
    max_lora_rank: int = 16
    random_weights: bool = False
    self_check: bool = False

    def __post_init__(self) -> None:
        _at_least("block_size", self.block_size, 1)
        _at_least("kv_cache_bytes", self.kv_cache_bytes, 1)
        _at_least("max_running", self.max_running, 1)
        _at_least("max_waiting", self.max_waiting, 1)
        _at_least("expected_output_tokens", self.expected_output_tokens, 0)
        _at_least("max_step_tokens", self.max_step_tokens, self.max_running + 1)
        _at_least("tensor_parallel_size", self.tensor_parallel_size, 1)
        if self.tensor_parallel_size > 1 and ":" in self.device:
            raise ConfigError(
                f"device is {self.device!r}, but tensor_parallel_size "
                f"{self.tensor_parallel_size} needs a device for each rank: use auto, cuda or cpu",
                param="device",
            )
        _at_least("max_loras", self.max_loras, 0)
        _at_least("max_cpu_loras", self.max_cpu_loras, max(self.max_loras, 1))
        if not 1 <= self.max_lora_rank <= MAX_LORA_RANK:
            raise ConfigError(
                f"max_lora_rank is {self.max_lora_rank}, but must be from 1 to {MAX_LORA_RANK}",
                param="max_lora_rank",
            )
        if self.num_blocks is not None:
            _at_least("num_blocks", self.num_blocks, 1)
        if self.max_model_len is not None:
            _at_least("max_model_len", self.max_model_len, 2)
        if self.kv_cache_dtype not in ("auto", "fp8_e4m3"):
            raise ConfigError(
                f"kv_cache_dtype is {self.kv_cache_dtype!r}, but must be auto or fp8_e4m3",
                param="kv_cache_dtype",
            )
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}, but must be above 0 and"
                " at most 1",
                param="gpu_memory_utilization",
            )
        if self.kv_tiers.cpu_gib:
            self._check_tiers()
        for name in ("graph_max_rows", "graph_max_tokens"):
            value = getattr(self, name)
            if value is not None:
                _at_least(name, value, 0)
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(
                f"dtype is {self.dtype!r}, but must be auto, float32, bfloat16 or float16",
                param="dtype",
            )

    def _check_tiers(self) -> None:
        if not self.prefix_cache:
            raise ConfigError(
                f"kv_tiers.cpu_gib is {self.kv_tiers.cpu_gib:g}, but without prefix_cache no KV is"
                " kept below the pool: turn it on, or use cpu_gib 0",
                param="kv_tiers.cpu_gib",
            )


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(f"{name} is {value}, but must be at least {low}", param=name)
