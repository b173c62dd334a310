"""Rotary position embedding: what config.json says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from baton.protos.errors import ModelLoadError

DEFAULT_THETA: Final = 10000.0
# Per kind, the numbers that config.json must hold, and the fields of RopeConfig that they fill.
_NUMBERS: Final = {
    "default": {"rope_theta": "theta"},
    "linear": {"rope_theta": "theta", "factor": "factor"},
    "llama3": {
        "rope_theta": "theta",
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_len",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """`kind` is default, linear (positions divided by `factor`) or llama3 (long waves only)."""

    kind: str
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_len: float = 0.0


def read_rope(values: Mapping[str, Any], where: str) -> RopeConfig:
    """Reads both generations of config.json: `rope_parameters`, or `rope_theta` + `rope_scaling`.

    Raises ModelLoadError for an unknown kind and for a missing or senseless number, by name.
    """
    key = "rope_parameters" if values.get("rope_parameters") is not None else "rope_scaling"
    raw = values.get(key)
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ModelLoadError(f"{where}: {key} is {raw!r}, but must be an object", param=key)
    kind = raw.get("rope_type") or raw.get("type") or "default"
    if not isinstance(kind, str) or kind not in _NUMBERS:
        raise ModelLoadError(
            f"{where}: rope type {kind!r} is not supported; supported: {', '.join(_NUMBERS)}",
            param=key,
        )
    partial = raw.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ModelLoadError(
            f"{where}: partial_rotary_factor is {partial!r}, but these models rotate whole heads",
            param="partial_rotary_factor",
        )
    theta = raw.get("rope_theta", values.get("rope_theta"))
    numbers = {**raw, "rope_theta": DEFAULT_THETA if theta is None else theta}
    rope = RopeConfig(
        kind=kind,
        **{
            field: _positive(numbers.get(name), f"{where}: {key}.{name}", name)
            for name, field in _NUMBERS[kind].items()
        },
    )
    if rope.kind == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise ModelLoadError(f"{where}: {key}: high_freq_factor must exceed low_freq_factor")
    return rope


def _positive(value: object, what: str, param: str) -> float:
    if value is None:
        raise ModelLoadError(f"{what} is missing", param=param)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ModelLoadError(f"{what} is {value!r}, but must be a positive number", param=param)
    return float(value)
