"""Custom resources against their definitions: the OpenAPI schema, strictly, and the CEL rules."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import jsonschema
import yaml
from tests.deploy.finding import crd_folder, module

Schema = dict[str, Any]
_KEPT = {
    "type",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "required",
    "minProperties",
    "maxProperties",
    "uniqueItems",
    "multipleOf",
}


@functools.cache
def definitions() -> dict[tuple[str, str], Schema]:
    """The schema of each served version, by apiVersion and kind."""
    found: dict[tuple[str, str], Schema] = {}
    for path in sorted(crd_folder().glob("*.yaml")):
        if not path.name.startswith(("ray.io_rayservices", "monitoring.", "gateway.", "keda.")):
            continue
        for one in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader):
            if one and one["kind"] == "CustomResourceDefinition":
                spec = one["spec"]
                for version in spec["versions"]:
                    if version["served"]:
                        api = f"{spec['group']}/{version['name']}"
                        schema = version["schema"]["openAPIV3Schema"]
                        found[api, spec["names"]["kind"]] = schema
    return found


def problems(one: dict[str, Any]) -> list[str]:
    """What an API server would refuse of a custom resource, unknown fields included."""
    key = (one["apiVersion"], one["kind"])
    schema = definitions()[key]
    wrong = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for error in _validator(key).iter_errors(one)
    ]
    return wrong + list(_broken_rules(schema, _with_defaults(schema, copy.deepcopy(one)), ""))


@functools.cache
def _validator(key: tuple[str, str]) -> jsonschema.Draft202012Validator:
    schema = _convert(definitions()[key], strict=True)
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def _convert(schema: Schema, *, strict: bool) -> Schema:
    """A structural schema as plain JSON schema; strict: no fields but those that it names."""
    made = {key: value for key, value in schema.items() if key in _KEPT}
    if "properties" in schema:
        named = schema["properties"].items()
        made["properties"] = {name: _convert(inner, strict=strict) for name, inner in named}
    if "items" in schema:
        made["items"] = _convert(schema["items"], strict=strict)
    if "not" in schema:
        made["not"] = _convert(schema["not"], strict=False)
    # Of these only the values count; the fields are named beside them.
    for key in ("allOf", "anyOf", "oneOf"):
        if key in schema:
            made[key] = [_convert(inner, strict=False) for inner in schema[key]]
    more = schema.get("additionalProperties")
    if more is not None:
        made["additionalProperties"] = (
            _convert(more, strict=strict) if isinstance(more, dict) else more
        )
    elif strict and "properties" in made:
        made["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    if schema.get("x-kubernetes-embedded-resource"):
        made.setdefault("properties", {})["metadata"] = {"type": "object"}
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


def _inner(schema: Schema, key: str) -> Schema | None:
    named = (schema.get("properties") or {}).get(key)
    more = schema.get("additionalProperties")
    return named or (more if isinstance(more, dict) else None)


def _with_defaults(schema: Schema, value: Any) -> Any:
    """As the API server fills in what is not given, before it applies rules."""
    if isinstance(value, dict):
        for key, inner in (schema.get("properties") or {}).items():
            if key not in value and "default" in inner:
                value[key] = copy.deepcopy(inner["default"])
        for key, one in value.items():
            if found := _inner(schema, key):
                _with_defaults(found, one)
    elif isinstance(value, list) and schema.get("items"):
        for one in value:
            _with_defaults(schema["items"], one)
    return value


def _broken_rules(schema: Schema, value: Any, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", []):
        # Rules about changes have nothing to say of a new object.
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            yield f"{path}: {rule.get('message') or rule['rule']}"
    if isinstance(value, dict):
        for key, one in value.items():
            if found := _inner(schema, key):
                yield from _broken_rules(found, one, f"{path}.{key}")
    elif isinstance(value, list) and schema.get("items"):
        for i, one in enumerate(value):
            yield from _broken_rules(schema["items"], one, f"{path}[{i}]")


def _holds(rule: str, value: Any) -> bool:
    return bool(_program(rule).evaluate({"self": module("celpy").json_to_cel(value)}))


@functools.cache
def _program(rule: str) -> Any:
    environment = module("celpy").Environment()
    return environment.program(environment.compile(rule))
