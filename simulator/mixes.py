"""Synthetic mixes by name, and those that a JSON file describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any, Final

from baton.protos.errors import ConfigError
from baton.simulator.synthetic import Burst, Mix, RequestClass

_CHAT = RequestClass(
    rate=4.0,
    prompt_tokens=400,
    prompt_sigma=0.9,
    output_tokens=220,
    output_sigma=0.8,
    prefix_tokens=1024,
    num_prefixes=4,
    turns=4,
)
_AGENT = RequestClass(
    rate=0.6,
    prompt_tokens=3_000,
    prompt_sigma=0.7,
    output_tokens=150,
    output_sigma=0.7,
    prefix_tokens=6_144,
    num_prefixes=150,
    turns=6,
    think_s=4.0,
)
_DOCUMENT = RequestClass(
    rate=1.2, prompt_tokens=16_000, prompt_sigma=0.6, output_tokens=200, output_sigma=0.6
)
_GENERATE = RequestClass(
    rate=6.0, prompt_tokens=300, prompt_sigma=0.6, output_tokens=1_000, output_sigma=0.5
)

MIXES: Final[Mapping[str, Mix]] = MappingProxyType(
    {
        "chat": Mix(duration_s=900.0, classes=(_CHAT,)),
        "agents": Mix(duration_s=900.0, classes=(_AGENT,)),
        "documents": Mix(duration_s=900.0, classes=(_DOCUMENT,)),
        "generate": Mix(duration_s=900.0, classes=(_GENERATE,)),
        "mixed": Mix(
            duration_s=900.0,
            classes=(
                RequestClass(
                    rate=3.0,
                    prompt_tokens=600,
                    prompt_sigma=1.0,
                    output_tokens=300,
                    output_sigma=0.8,
                ),
                RequestClass(
                    rate=1.0,
                    prompt_tokens=12_000,
                    prompt_sigma=0.8,
                    output_tokens=200,
                    output_sigma=0.8,
                ),
                _AGENT,
            ),
        ),
        # Forty minutes, a quarter of them at four times the load.
        "burst": Mix(
            duration_s=2400.0,
            classes=(
                RequestClass(
                    rate=2.0,
                    prompt_tokens=8_000,
                    prompt_sigma=0.6,
                    output_tokens=250,
                    output_sigma=0.7,
                ),
            ),
            bursts=(Burst(start_s=900.0, end_s=1500.0, factor=4.0, ramp_s=60.0),),
        ),
    }
)


def mix_from_json(value: Mapping[str, Any], where: str) -> Mix:
    """`{"duration_s": ..., "classes": [{...}], "bursts": [{...}]}` with the fields of Mix.

    Raises ConfigError that names an unknown or wrong field.
    """
    _known(value, Mix, where)
    try:
        return Mix(
            duration_s=value.get("duration_s", 600.0),
            classes=tuple(
                RequestClass(**_known(item, RequestClass, f"{where} classes"))
                for item in value.get("classes", ())
            ),
            bursts=tuple(
                Burst(**_known(item, Burst, f"{where} bursts")) for item in value.get("bursts", ())
            ),
        )
    except TypeError as error:
        raise ConfigError(f"{where}: {error}", param="trace") from None


def _known(value: Any, kind: type, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: must be a JSON object", param="trace")
    names = [field.name for field in fields(kind)]
    for name in value:
        if name not in names:
            raise ConfigError(
                f"{where}: {name!r} is unknown; {kind.__name__} has {', '.join(names)}",
                param="trace",
            )
    return value
