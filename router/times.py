"""How long things take: linear time models, their JSON form, and the times of 8B on one H100.

Values only; `router/learning.py` fits them to what workers report. Seconds, tokens, bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from baton.protos.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def _check(times: DataclassInstance) -> None:
    for item in fields(times):
        value = getattr(times, item.name)
        low = 1 if item.name == "chunk_tokens" else 0
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < low:
            raise ConfigError(
                f"{item.name} is {value!r}, but must be a finite number of at least {low}",
                param=item.name,
            )


def num_pairs(num_new_tokens: float, num_cached_tokens: float) -> float:
    """(token, attended token) pairs of computing new tokens after cached ones."""
    return num_new_tokens * (num_cached_tokens + 0.5 * num_new_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillTimes:
    """Seconds to compute prompt tokens.

    A step of n new tokens after c cached ones, beside `batch` decodes, takes
    `fixed_s + n * per_token_s + n * (c + n / 2) * per_pair_s + batch * per_row_s`.
    A prompt takes a step for every `chunk_tokens` tokens.
    """

    fixed_s: float
    per_token_s: float
    per_pair_s: float = 0.0
    per_row_s: float = 0.0
    chunk_tokens: int = 8192

    def __post_init__(self) -> None:
        _check(self)

    def predict(
        self, num_new_tokens: float, num_cached_tokens: float = 0, batch: float = 0
    ) -> float:
        """The whole prompt, in as many steps as it takes; 0 tokens take no time."""
        if num_new_tokens <= 0:
            return 0.0
        num_steps = math.ceil(num_new_tokens / self.chunk_tokens)
        return (
            num_steps * (self.fixed_s + batch * self.per_row_s)
            + num_new_tokens * self.per_token_s
            + num_pairs(num_new_tokens, num_cached_tokens) * self.per_pair_s
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTimes:
    """Seconds of a step that only decodes, by running requests and the KV tokens they hold."""

    fixed_s: float
    per_row_s: float = 0.0
    per_kv_token_s: float = 0.0

    def __post_init__(self) -> None:
        _check(self)

    def predict(self, num_running: float, kv_tokens: float = 0) -> float:
        return self.fixed_s + num_running * self.per_row_s + kv_tokens * self.per_kv_token_s


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferTimes:
    """Seconds to move KV from one worker to another, when nothing else is moved."""

    fixed_s: float
    per_byte_s: float

    def __post_init__(self) -> None:
        _check(self)

    def predict(self, num_bytes: float) -> float:
        return self.fixed_s + num_bytes * self.per_byte_s


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTimes:
    """One worker's models. Any worker may do both: a decode worker also computes prompts."""

    prefill: PrefillTimes
    decode: DecodeTimes

    def step_s(
        self, num_new_tokens: float, num_cached_tokens: float, num_rows: float, kv_tokens: float
    ) -> float:
        """One step of at most `chunk_tokens` new tokens, beside `num_rows` decodes."""
        if num_new_tokens <= 0:
            return self.decode.predict(num_rows, kv_tokens)
        return (
            self.prefill.predict(num_new_tokens, num_cached_tokens, num_rows)
            + kv_tokens * self.decode.per_kv_token_s
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTimes:
    """Everything that a simulation, or a gateway without reports, needs to know of a fleet.

    `handshake_s`: what a remote prefill costs beside waiting, computing and moving KV.
    """

    prefill_pool: WorkerTimes
    decode_pool: WorkerTimes
    transfer: TransferTimes
    kv_bytes_per_token: int
    handshake_s: float = 0.003
    source: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> ModelTimes:
        """The inverse of `to_json`. Raises ConfigError that names the key that is wrong."""
        raw = _object(text)
        known = {item.name for item in fields(cls)}
        for key in raw:
            if key not in known:
                raise ConfigError(f"model times have no {key!r}, only {', '.join(sorted(known))}")
        try:
            return cls(
                prefill_pool=_worker(raw["prefill_pool"]),
                decode_pool=_worker(raw["decode_pool"]),
                transfer=TransferTimes(**raw["transfer"]),
                kv_bytes_per_token=raw["kv_bytes_per_token"],
                handshake_s=raw.get("handshake_s", 0.003),
                source=raw.get("source", ""),
            )
        except KeyError as error:
            raise ConfigError(f"model times lack {error.args[0]!r}") from None
        except TypeError as error:
            raise ConfigError(f"model times are not as `ModelTimes` writes them: {error}") from None


# Llama-3.1-8B, bfloat16, on one H100: fitted to vLLM 0.26's published behaviour on that card as
# measured there (TTFT of 512 to 32k tokens within 1%, decode of 1 to 256 requests within 3%).
# Transfers: 16 tokens are 2 MiB; 200 Gb/s between hosts.
_H100_8B: Final = WorkerTimes(
    prefill=PrefillTimes(
        fixed_s=5.8e-3,
        per_token_s=22.2e-6,
        per_pair_s=0.853e-9,
        per_row_s=3e-6,
        chunk_tokens=8192,
    ),
    decode=DecodeTimes(fixed_s=6.45e-3, per_row_s=4e-6, per_kv_token_s=48e-9),
)
H100_8B: Final = ModelTimes(
    prefill_pool=_H100_8B,
    # The engine's own budget of a step that decodes: larger chunks would hold up every other token.
    decode_pool=replace(_H100_8B, prefill=replace(_H100_8B.prefill, chunk_tokens=512)),
    transfer=TransferTimes(fixed_s=0.0005, per_byte_s=1 / 25e9),
    kv_bytes_per_token=131_072,
    source="8B on one H100, 200 Gb/s",
)


class Near(IntEnum):
    """How far two workers are from each other."""

    FAR = 0
    RACK = 1
    HOST = 2


@dataclass(frozen=True, slots=True)
class Transfers:
    """Transfer models by (prefill worker, decode worker), and for pairs never seen by nearness.

    by_nearness: indexed by `Near`.
    """

    by_nearness: tuple[TransferTimes, TransferTimes, TransferTimes] = (H100_8B.transfer,) * 3
    pairs: Mapping[tuple[str, str], TransferTimes] = field(default_factory=dict)

    def between(self, prefill: str, decode: str, near: Near = Near.FAR) -> TransferTimes:
        return self.pairs.get((prefill, decode)) or self.by_nearness[near]


def _worker(raw: dict[str, Any]) -> WorkerTimes:
    return WorkerTimes(prefill=PrefillTimes(**raw["prefill"]), decode=DecodeTimes(**raw["decode"]))


def _object(text: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"model times are not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"model times must be a JSON object, not {type(raw).__name__}")
    return raw
