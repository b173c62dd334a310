"""The schema of what is not valid under another: never more than that, at times less."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from baton.engine.grammar.schema.document import (
    TYPES,
    Schema,
    SchemaDocument,
    listed,
    mapped,
    pattern_words,
    type_names,
    type_of,
)

# keyword: (type it speaks of, keyword of the opposite, what to add to the bound)
_OPPOSITES: Final = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minProperties": ("object", "maxProperties", -1),
    "maxProperties": ("object", "minProperties", 1),
}
# Negated with what they stand beside.
_BESIDE: Final = frozenset({"then", "else"})
MAX_EXCLUDED_CHARACTERS: Final = 400


class Negation:
    """Every result allows only documents that the schema forbids. Where a keyword's opposite cannot
    be said (a pattern's, that some property is wrong) its documents are left out."""

    def __init__(self, document: SchemaDocument) -> None:
        self._document = document
        # References that are being followed: one that meets itself is left out.
        self._following: list[str] = []

    def negate(self, schema: Schema) -> Schema:
        """False if nothing that can be said is left."""
        self._document.visit()
        if not isinstance(schema, dict):
            return schema is False
        parts: list[Schema] = []
        reference = schema.get("$ref")
        if reference is not None:
            parts += self._referenced(reference)
        if reference is None or not self._document.ref_stands_alone:
            for keyword, value in schema.items():
                if keyword not in _BESIDE:
                    parts += self._opposites(keyword, value, schema)
        return any_of(parts)

    def _referenced(self, reference: Any) -> list[Schema]:
        target = self._document.resolve(reference)
        if target is None or reference in self._following:
            return []
        self._following.append(reference)
        try:
            return [self.negate(target)]
        finally:
            self._following.pop()

    def _opposites(self, keyword: str, value: Any, schema: Mapping[str, Any]) -> list[Schema]:
        if keyword in _OPPOSITES:
            return _opposite_bound(keyword, value)
        rules: dict[str, Callable[[Any], list[Schema]]] = {
            "type": _other_types,
            "enum": lambda values: _none_of(listed(values)),
            "const": lambda only: _none_of([only]),
            "pattern": _other_strings,
            "required": lambda names: [_without(name) for name in listed(names)],
            "properties": self._wrong_property,
            "not": lambda inner: [inner],
            "allOf": lambda all_: [self.negate(part) for part in listed(all_)],
            "anyOf": lambda any_: [all_of([self.negate(part) for part in listed(any_)])],
            "oneOf": lambda one: self._none_or_two(listed(one)),
            "contains": self._contains_none,
            "if": lambda condition: self._wrong_branch(condition, schema),
            "dependencies": self._wrong_dependency,
            "dependentRequired": self._wrong_dependency,
            "dependentSchemas": self._wrong_dependency,
        }
        return rules[keyword](value) if keyword in rules else []

    def _wrong_property(self, properties: Any) -> list[Schema]:
        wrong = ((name, self.negate(part)) for name, part in mapped(properties).items())
        return [
            {"type": "object", "required": [name], "properties": {name: part}}
            for name, part in wrong
            if part is not False
        ]

    def _none_or_two(self, branches: list[Schema]) -> list[Schema]:
        none = all_of([self.negate(branch) for branch in branches])
        pairs: list[Schema] = [
            all_of([one, other])
            for index, one in enumerate(branches)
            for other in branches[index + 1 :]
        ]
        return [none, *pairs]

    def _contains_none(self, inner: Any) -> list[Schema]:
        return [{"type": "array", "items": self.negate(inner)}]

    def _wrong_branch(self, condition: Schema, schema: Mapping[str, Any]) -> list[Schema]:
        then = all_of([condition, self.negate(schema.get("then", True))])
        other = all_of([self.negate(condition), self.negate(schema.get("else", True))])
        return [then, other]

    def _wrong_dependency(self, dependencies: Any) -> list[Schema]:
        found: list[Schema] = []
        for name, needs in mapped(dependencies).items():
            wanted = {"required": needs} if isinstance(needs, list) else needs
            here = {"type": "object", "required": [name]}
            found.append(all_of([here, self.negate(wanted)]))
        return found


def any_of(parts: list[Schema]) -> Schema:
    """Their union, said as shortly as it can be."""
    kept = [part for part in parts if part is not False]
    if any(part is True or part == {} for part in kept):
        return True
    if not kept:
        return False
    return kept[0] if len(kept) == 1 else {"anyOf": kept}


def all_of(parts: list[Schema]) -> Schema:
    """Their intersection, said as shortly as it can be."""
    if any(part is False for part in parts):
        return False
    kept = [part for part in parts if part is not True and part != {}]
    if not kept:
        return True
    return kept[0] if len(kept) == 1 else {"allOf": kept}


def _opposite_bound(keyword: str, value: Any) -> list[Schema]:
    kind, opposite, step = _OPPOSITES[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float) or value + step < 0 > step:
        return []
    return [{"type": kind, opposite: value + step}]


def _other_types(value: Any) -> list[Schema]:
    # Numbers that are not whole have no type of their own.
    others = [name for name in TYPES if name not in type_names(value)]
    return [{"type": others}] if others else []


def _without(name: Any) -> Schema:
    return {"type": "object", "properties": {name: False}} if isinstance(name, str) else False


def _none_of(values: list[Any]) -> list[Schema]:
    """Documents other than these values; objects and arrays are left out as whole types."""
    by_type: dict[str, list[Any]] = {}
    for value in values:
        by_type.setdefault(type_of(value), []).append(value)
    found: list[Schema] = _other_types(list(by_type)) if by_type else [True]
    if "boolean" in by_type:
        left = [flag for flag in (True, False) if flag not in by_type["boolean"]]
        found += [{"enum": left}] if left else []
    found += _number_gaps(sorted(set(by_type.get("number", ()))))
    words = by_type.get("string", [])
    if words and sum(map(len, words)) <= MAX_EXCLUDED_CHARACTERS:
        found.append({"type": "string", "pattern": f"^(?:{other_words(words)})$"})
    return found


def _other_strings(pattern: Any) -> list[Schema]:
    words = pattern_words(pattern)
    if words is None:
        return []
    # Python's `$`, unlike JSON Schema's, also matches before a last line break.
    words += [f"{word}\n" for word in words]
    others: list[Schema] = [part for part in _none_of(words) if "pattern" in part]
    return others


def _number_gaps(values: list[float]) -> Iterator[Schema]:
    if not values:
        return
    yield {"type": "number", "exclusiveMaximum": values[0]}
    for low, high in itertools.pairwise(values):
        yield {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high}
    yield {"type": "number", "exclusiveMinimum": values[-1]}


def other_words(words: list[str]) -> str:
    """A regular expression for every text that is not one of the words: a walk of their trie."""
    followers: dict[str, list[str]] = {}
    for word in words:
        if word:
            followers.setdefault(word[0], []).append(word[1:])
    alternatives = [] if "" in words else [""]
    if followers:
        others = "".join(_in_class(character) for character in followers)
        alternatives.append(rf"[^{others}][\s\S]*")
    else:
        alternatives.append(r"[\s\S]+")
    alternatives += [
        f"{re.escape(character)}(?:{other_words(rest)})" for character, rest in followers.items()
    ]
    return "|".join(alternatives)


def _in_class(character: str) -> str:
    return f"\\{character}" if character in r"\]^-[&~" else character
