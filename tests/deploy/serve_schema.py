"""serveConfigV2 more strictly than Ray reads it: Ray ignores keys that it does not know."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

import pydantic


def problems(config: dict[str, Any]) -> list[str]:
    """What is wrong with a serveConfigV2."""
    from ray.serve.schema import ServeDeploySchema

    try:
        ServeDeploySchema.model_validate(config)
    except pydantic.ValidationError as error:
        return [str(error)]
    routes = [one.get("route_prefix") for one in config.get("applications", [])]
    wrong = [f"route_prefix {r} does not begin with /" for r in routes if r and r[0] != "/"]
    return wrong + list(_unknown(ServeDeploySchema, config, ""))


def _unknown(model: type[pydantic.BaseModel], value: Any, path: str) -> Iterator[str]:
    names = {field.alias or name: field for name, field in model.model_fields.items()}
    for key, inner in value.items():
        if key not in names:
            yield f"{path}{key} is not a key of Serve's"
            continue
        for found in _models(names[key].annotation):
            for i, one in enumerate(inner if isinstance(inner, list) else [inner]):
                if isinstance(one, dict):
                    yield from _unknown(found, one, f"{path}{key}[{i}].")


def _models(hint: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        if issubclass(hint, pydantic.BaseModel):
            yield hint
        return
    for inner in typing.get_args(hint):
        yield from _models(inner)
