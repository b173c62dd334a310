"""How long a worker takes: the model of one engine step, and what surrounds it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path

from baton.protos.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTimes:
    """Times of one model on one kind of worker, in seconds, tokens and bytes.

    A step that computes `n` prompt tokens, each of which attends to what precedes it (`pairs` of
    query and key), beside `r` decoding requests that hold `k` KV tokens takes ::

        step_s + n * prompt_token_s + pairs * pair_s + r * row_s + k * kv_token_s

    The defaults are Llama-3-8B in bfloat16 on one H100 80GB as measured with vLLM 0.26.0 (prompts of
    512, 2,048, 8,192 and 32,768 tokens in 17.3, 53.0, 216 and 1,190 ms; steps of 1, 8, 64 and 256
    requests of 1,088 tokens in 6.55, 7.00, 9.99 and 20.8 ms; 444,528 tokens of KV; 109 s from
    process to ready without a compile cache). They give these within 5 %. The network is 200 Gb/s.
    Raises ConfigError that names the field.
    """

    step_s: float = 0.0065
    prompt_token_s: float = 22.4e-6
    pair_s: float = 8.3e-10
    row_s: float = 6.5e-6
    kv_token_s: float = 45e-9
    # KV that one worker holds, and its size.
    kv_capacity_tokens: int = 444_528
    kv_bytes_per_token: int = 131_072
    transfer_bytes_per_s: float = 25e9
    # From the decode worker to the prefill worker, and the reservation on the way back.
    handshake_s: float = 0.003
    # What every request pays outside of engines: gateway, network, first message.
    overhead_s: float = 0.0
    # From asking for a worker to its first request.
    startup_s: float = 109.0
    gpus_per_worker: int = 1

    def __post_init__(self) -> None:
        positive = {"kv_capacity_tokens", "kv_bytes_per_token", "transfer_bytes_per_s", "step_s"}
        for field in fields(self):
            value = getattr(self, field.name)
            enough = value > 0 if field.name in positive else value >= 0
            if not math.isfinite(value) or not enough:
                bound = "more than 0" if field.name in positive else "at least 0"
                raise ConfigError(
                    f"{field.name} is {value}, but must be finite and {bound}", param=field.name
                )

    def duration_s(self, num_tokens: int, num_pairs: float, num_rows: int, kv_tokens: int) -> float:
        """One step that computes `num_tokens` of prompts beside `num_rows` decodes."""
        return (
            self.step_s
            + num_tokens * self.prompt_token_s
            + num_pairs * self.pair_s
            + num_rows * self.row_s
            + kv_tokens * self.kv_token_s
        )

    def prefill_s(self, num_tokens: int, num_cached_tokens: int, max_step_tokens: int) -> float:
        """A prompt alone on a worker, of which the first `num_cached_tokens` are cached."""
        num_new = num_tokens - num_cached_tokens
        num_steps = -(-num_new // max_step_tokens)
        pairs = num_new * (num_cached_tokens + num_new / 2)
        return num_steps * self.step_s + num_new * self.prompt_token_s + pairs * self.pair_s

    @property
    def transfer_s_per_token(self) -> float:
        return self.kv_bytes_per_token / self.transfer_bytes_per_s


def load_times(path: Path) -> ModelTimes:
    """Reads a JSON object of ModelTimes' fields; those left out keep their defaults.

    Raises ConfigError for a file that cannot be read, an unknown field or a value that is no number.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model times {path}: {error}", param="model-times") from None
    if not isinstance(values, dict):
        raise ConfigError(f"model times {path}: must be one JSON object", param="model-times")
    known = {field.name for field in fields(ModelTimes)}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(
                f"model times {path}: {name!r} is none of {', '.join(sorted(known))}", param=name
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"model times {path}: {name} is {value!r}, not a number", param=name)
    return ModelTimes(**values)
