"""Whether two schemas have no document in common: what makes a oneOf an anyOf."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Final

from baton.engine.grammar.schema.document import (
    Schema,
    SchemaDocument,
    listed,
    mapped,
    pattern_words,
    same_value,
    type_names,
    type_of,
)

_DEPTH: Final = 6
# (lower bound, its open form, upper bound, its open form) by type.
_BOUNDS: Final = {
    "number": ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"),
    "string": ("minLength", "", "maxLength", ""),
    "array": ("minItems", "", "maxItems", ""),
    "object": ("minProperties", "", "maxProperties", ""),
}


class Disjointness:
    """`disjoint` is True only if it is sure: no document is valid under both."""

    def __init__(self, document: SchemaDocument) -> None:
        self._document = document

    def disjoint(self, one: Schema, other: Schema, depth: int = _DEPTH) -> bool:
        parts = self._document.expanded(one) + self._document.expanded(other)
        return self._empty(parts, depth)

    def _empty(self, parts: list[Schema], depth: int) -> bool:
        """Whether no document is valid under all of the parts."""
        self._document.visit()
        if any(part is False for part in parts):
            return True
        objects = [part for part in parts if isinstance(part, dict)]
        kinds = set.intersection(*(type_names(part.get("type")) for part in objects), _ALL)
        values = _common_values(objects)
        if values is not None:
            kinds &= {type_of(value) for value in values}
        if all(self._empty_type(kind, objects, values, depth) for kind in kinds):
            return True
        return depth > 0 and any(
            all(self._empty(self._with(parts, part, key, b), depth - 1) for b in part[key])
            for part in objects
            for key in ("anyOf", "oneOf")
            if listed(part.get(key))
        )

    def _with(self, parts: list[Schema], part: Schema, key: str, branch: Schema) -> list[Schema]:
        """The parts, with one branch in the place of its choice."""
        without = {name: value for name, value in part.items() if name != key}
        others = [other for other in parts if other is not part]
        return [*others, without, *self._document.expanded(branch)]

    def _empty_type(
        self, kind: str, parts: list[dict[str, Any]], values: list[Any] | None, depth: int
    ) -> bool:
        """Whether no document of this type is valid under all of the parts."""
        if values is not None:
            left = [value for value in values if type_of(value) == kind]
            return not left or (kind == "string" and not _matching(left, parts))
        if kind in _BOUNDS and _no_room(kind, parts):
            return True
        if kind == "object" and depth:
            return self._empty_object(parts, depth)
        if kind == "array" and depth:
            items = [part["items"] for part in parts if isinstance(part.get("items"), dict | bool)]
            needed = max((_number(part.get("minItems"), 0) for part in parts), default=0)
            return needed > 0 and len(items) > 1 and self._empty(self._all(items), depth - 1)
        return False

    def _empty_object(self, parts: list[dict[str, Any]], depth: int) -> bool:
        required = {
            name for part in parts for name in listed(part.get("required")) if isinstance(name, str)
        }
        return any(
            self._empty(self._all(_property_schemas(parts, name)), depth - 1)
            for name in sorted(required)
        )

    def _all(self, schemas: Iterable[Schema]) -> list[Schema]:
        return [part for schema in schemas for part in self._document.expanded(schema)]


_ALL: Final = {"null", "boolean", "object", "array", "number", "string"}


def _common_values(parts: list[dict[str, Any]]) -> list[Any] | None:
    """The values that every enum and const allows; None if there is neither."""
    common: list[Any] | None = None
    for part in parts:
        lists = [part["enum"]] if isinstance(part.get("enum"), list) else []
        lists += [[part["const"]]] if "const" in part else []
        words = pattern_words(part.get("pattern"))
        if words is not None and type_names(part.get("type")) == {"string"}:
            lists.append(words)
        for values in lists:
            if common is None:
                common = list(values)
            else:
                common = [a for a in common if any(same_value(a, b) for b in values)]
    return common


def _matching(values: list[str], parts: list[dict[str, Any]]) -> list[str]:
    """The strings that every pattern finds; patterns that Python cannot read find all."""
    patterns = [part["pattern"] for part in parts if isinstance(part.get("pattern"), str)]
    return [value for value in values if all(_finds(pattern, value) for pattern in patterns)]


def _finds(pattern: str, value: str) -> bool:
    # Python's matcher backtracks: only short texts and patterns are worth the risk.
    if len(pattern) > 200 or len(value) > 100 or re.search(r"[+*}]\)[+*{]", pattern):
        return True
    try:
        return re.search(pattern, value) is not None
    except re.error:
        return True


def _no_room(kind: str, parts: list[dict[str, Any]]) -> bool:
    low, open_low, high, open_high = _BOUNDS[kind]
    least = max((_number(part.get(low), -math.inf) for part in parts), default=-math.inf)
    most = min((_number(part.get(high), math.inf) for part in parts), default=math.inf)
    above = max((_number(part.get(open_low), -math.inf) for part in parts), default=-math.inf)
    below = min((_number(part.get(open_high), math.inf) for part in parts), default=math.inf)
    return least > most or above >= most or least >= below or above >= below > -math.inf


def _number(value: Any, default: float) -> float:
    """A bound; an old draft's `exclusiveMinimum: true` is none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


def _property_schemas(parts: list[dict[str, Any]], name: str) -> list[Schema]:
    """What the parts demand of a property that is there."""
    found: list[Schema] = []
    for part in parts:
        properties, patterns = mapped(part.get("properties")), mapped(part.get("patternProperties"))
        if name in properties:
            found.append(properties[name])
        elif not patterns and isinstance(part.get("additionalProperties"), dict | bool):
            found.append(part["additionalProperties"])
    return found
