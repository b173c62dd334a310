"""Values that a format writes as bare text, typed by the tool's JSON schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from baton.gateway.parsers.json_text import literal

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
_NO_VALUE = object()
_COMBINERS = ("anyOf", "oneOf", "allOf")
# The order in which a text is tried against the types a schema allows; string takes what is left.
_ORDER = ("null", "integer", "number", "boolean", "object", "array")


class ToolSchemas:
    """The parameters of the tools of one request. Without tools nothing is known of any name."""

    __slots__ = ("_parameters",)

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        self._parameters: dict[str, Mapping[str, Any]] = {}
        for tool in tools or ():
            function = tool.get("function", tool)
            if isinstance(function, Mapping) and isinstance(function.get("name"), str):
                parameters = function.get("parameters") or function.get("input_schema") or {}
                self._parameters[function["name"]] = (
                    parameters if isinstance(parameters, Mapping) else {}
                )

    @property
    def known(self) -> bool:
        """Whether the request named any tool."""
        return bool(self._parameters)

    def has(self, name: str) -> bool:
        """Whether the request has a tool of that name."""
        return name in self._parameters

    def properties(self, name: str) -> Mapping[str, Any]:
        """A tool's parameters by name; empty for an unknown tool."""
        schema = self._parameters.get(name, {})
        properties = schema.get("properties")
        return properties if isinstance(properties, Mapping) else {}

    def parameter(self, name: str, key: str) -> Any:
        """The schema of one parameter, or None."""
        properties = self.properties(name)
        if key in properties:
            return properties[key]
        extra = self._parameters.get(name, {}).get("additionalProperties")
        return extra if isinstance(extra, Mapping) else None

    def only_tool_with(self, arguments: Any) -> str | None:
        """The one tool that takes these arguments, where a model left out the name."""
        if not isinstance(arguments, dict):
            return None
        fitting = [n for n in self._parameters if arguments.keys() <= self.properties(n).keys()]
        return fitting[0] if len(fitting) == 1 and arguments else None

    def only_parameters(self, name: str) -> Mapping[str, Any]:
        """A tool's whole parameter schema."""
        return self._parameters.get(name, {})


# Names of other schema dialects that tools are declared with.
_DIALECT = {
    "int": "integer", "long": "integer", "float": "number", "double": "number", "bool": "boolean",
    "str": "string", "text": "string", "dict": "object", "map": "object", "list": "array",
    "tuple": "array",
}  # fmt: skip


def types_of(schema: Any, depth: int = 0) -> frozenset[str]:
    """The JSON types that a schema allows as far as it says; empty if it says nothing."""
    if not isinstance(schema, Mapping) or depth > 16:
        return frozenset()
    found: set[str] = set()
    declared = schema.get("type")
    if isinstance(declared, str):
        found.add(declared)
    elif isinstance(declared, list):
        found.update(t for t in declared if isinstance(t, str))
    for value in schema.get("enum") or ():
        found.add(_type_name(value))
    if "const" in schema:
        found.add(_type_name(schema["const"]))
    for combiner in _COMBINERS:
        for part in schema.get(combiner) or ():
            found |= types_of(part, depth + 1)
    if schema.get("nullable") is True:
        found.add("null")
    if not found and "properties" in schema:
        found.add("object")
    if not found and "items" in schema:
        found.add("array")
    return frozenset(_DIALECT.get(name, name) for name in found)


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def convert(text: str, schema: Any, *, untyped: Literal["string", "json"] = "string") -> Any:
    """The value that `text` stands for under `schema`; as text if it fits no type of it. Without a
    type, `untyped` says: "string" keeps the text, "json" reads JSON where it is some.
    """
    types = types_of(schema)
    if not types:
        if untyped == "string":
            return text
        value = _parse(text.strip())
        return text if value is _NO_VALUE else value
    for kind in _ORDER:
        if kind in types:
            value = _as_kind(kind, text.strip())
            if value is not _NO_VALUE:
                return value
    return text


def coerce(value: Any, schema: Any) -> Any:
    """A JSON value whose strings are typed by the schema: "2" for an integer is 2."""
    if isinstance(value, str) and "string" not in types_of(schema):
        return convert(value, schema)
    return value


def _as_kind(kind: str, text: str) -> Any:
    if kind == "null":
        return None if text.lower() == "null" else _NO_VALUE
    if kind == "boolean":
        return _BOOLEANS.get(text.lower(), _NO_VALUE)
    if kind in ("integer", "number"):
        return _number(kind, text)
    value = _parse(text)
    wanted = dict if kind == "object" else list
    return value if isinstance(value, wanted) else _NO_VALUE


def _number(kind: str, text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = json.loads(text, parse_constant=lambda _: _NO_VALUE)
    except (ValueError, RecursionError):
        return _NO_VALUE
    if not isinstance(value, float) or isinstance(value, bool):
        return _NO_VALUE
    if value.is_integer() and kind == "integer" and abs(value) < 2**53:
        return int(value)
    return value if kind == "number" else _NO_VALUE


def _parse(text: str) -> Any:
    """JSON, escaped JSON, or a Python literal; _NO_VALUE otherwise."""
    for candidate in (text, _unescaped(text)):
        try:
            return json.loads(candidate, strict=False, parse_constant=_refuse)
        except (ValueError, RecursionError):
            continue
    value = literal(text) if text[:1] in "[{(" and text else None
    return _NO_VALUE if value is None else value


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _unescaped(text: str) -> str:
    """Text that was escaped once more than it should be, as some models write nested JSON."""
    if '\\"' not in text:
        return text
    try:
        value = json.loads(f'"{text}"')
    except ValueError:
        return text
    return str(value)
