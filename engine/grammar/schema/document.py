"""A schema document: where its references lead, which draft it follows, and how much work it is."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import unquote

from baton.protos.errors import GrammarError

Schema = Any  # a dict, or true or false

# Visits of subschemas, copies made by rewriting included; a fraction of a second of work.
MAX_VISITS: Final = 10_000
TYPES: Final = ("null", "boolean", "object", "array", "number", "string")
# In these drafts, what stands beside a $ref does not count.
_OLD_DRAFTS: Final = ("draft-03", "draft-04", "draft-06", "draft-07")


class SchemaDocument:
    """The root of a schema. Not thread-safe; one is made for each compilation."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self._visits = 0
        dialect = root.get("$schema") if isinstance(root, dict) else None
        named = isinstance(dialect, str) and any(draft in dialect for draft in _OLD_DRAFTS)
        self.ref_stands_alone = named

    def visit(self) -> None:
        """Raises GrammarError when a schema is too much work: rewriting may be exponential."""
        self._visits += 1
        if self._visits > MAX_VISITS:
            raise GrammarError(
                f"the schema is too complex: its keywords multiply to more than {MAX_VISITS} parts",
                reason="too_complex",
            )

    def resolve(self, reference: Any) -> Schema | None:
        """What a local JSON pointer refers to; None for everything else."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        found = self.root
        for part in reference[1:].split("/")[1:] if reference != "#" else ():
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            else:
                return None
        return found if isinstance(found, dict | bool) else None

    def expanded(self, schema: Schema, depth: int = 8) -> list[Schema]:
        """Schemas that must all hold for `schema` to hold: itself, its $ref, its allOf.

        Deep or unknown references are left out, so the list may demand too little.
        """
        self.visit()
        if not isinstance(schema, dict):
            return [schema]
        target = self.resolve(schema.get("$ref"))
        parts: list[Schema] = []
        if not ("$ref" in schema and self.ref_stands_alone):
            parts.append(schema)
            if depth:
                for part in listed(schema.get("allOf")):
                    parts += self.expanded(part, depth - 1)
        if target is not None and depth:
            parts += self.expanded(target, depth - 1)
        return parts


# An alternation of plain words, anchored: a set of values in a pattern's clothes.
_WORDS: Final = re.compile(r"\^(?:\((?:\?:)?([\w |-]+)\)|([\w -]+))\$")


def pattern_words(pattern: Any) -> list[str] | None:
    """The texts that a pattern such as `^(red|blue)$` allows; None if it is more than a list."""
    match = _WORDS.fullmatch(pattern) if isinstance(pattern, str) and pattern.isascii() else None
    return None if match is None else (match[1] or match[2]).split("|")


def listed(value: Any) -> list[Any]:
    """A keyword's list, or nothing if it is not one."""
    return value if isinstance(value, list) else []


def mapped(value: Any) -> dict[str, Any]:
    """A keyword's object, or nothing if it is not one."""
    return value if isinstance(value, dict) else {}


def type_names(value: Any) -> set[str]:
    """The types that a `type` keyword allows, integers being numbers; all if it is absent."""
    names = [value] if isinstance(value, str) else listed(value)
    if not names:
        return set(TYPES)
    return {"number" if name == "integer" else name for name in names if isinstance(name, str)}


def type_of(value: Any) -> str:
    """A JSON value's type, integers being numbers."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def same_value(one: Any, other: Any) -> bool:
    """Equality as JSON Schema has it: 1 is 1.0, but not true."""
    if type_of(one) != type_of(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_value(one[k], other[k]) for k in one)
    return bool(one == other)
