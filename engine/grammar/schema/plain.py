"""The part of JSON Schema that xgrammar enforces as the drafts mean it.

Found by feeding it documents (docs/structured_output.md has the figures): what is not here it
ignores silently in some combination, or reads another way.
"""

from __future__ import annotations

from typing import Any, Final

from baton.engine.grammar.schema.document import (
    TYPES,
    Schema,
    SchemaDocument,
    listed,
    mapped,
    type_names,
    type_of,
)
from baton.protos.errors import GrammarError

_ASSERTIONS: Final = frozenset(
    [
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "enum",
        "const",
        "anyOf",
        "$ref",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
    ]
)
# Every other keyword that a draft gives a meaning; the rest are annotations.
_REFUSED: Final = frozenset(
    [
        "allOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "unevaluatedProperties",
        "prefixItems",
        "additionalItems",
        "contains",
        "minContains",
        "maxContains",
        "uniqueItems",
        "unevaluatedItems",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "divisibleBy",
        "pattern",
        "format",
        "$dynamicRef",
        "$recursiveRef",
        "extends",
        "disallow",
    ]
)
_TYPES: Final = frozenset([*TYPES, "integer"])
_TABLES: Final = ("properties", "definitions", "$defs")
_COUNTS: Final = (("minItems", "maxItems"), ("minLength", "maxLength"))
# What these say must be said alone.
_LONELY: Final = ("$ref", "anyOf", "enum", "const")


def check_plain(schema: Schema) -> None:
    """Raises GrammarError naming the first keyword that xgrammar does not enforce, or that is not
    as the drafts have it (xgrammar takes it for nothing then), and where.
    """
    _check_part(schema, SchemaDocument(schema), "#")


def _check_part(schema: Schema, document: SchemaDocument, path: str) -> None:
    if not isinstance(schema, dict):
        if schema is False:
            raise _unenforced("the schema false", path)
        if schema is not True:
            raise _malformed(path, schema, "an object or a boolean")
        return
    _check_form(schema, path)
    _check_reference(schema, document, path)
    asserted = set(schema) & _ASSERTIONS
    refused = sorted(set(schema) & _REFUSED)
    if refused:
        raise _unenforced(f"{refused[0]!r}", path)
    for key in _LONELY:
        beside = sorted(asserted - {key, "type"})
        if key in asserted and (beside or (key in ("$ref", "anyOf") and "type" in asserted)):
            raise _unenforced(f"what stands beside {key!r}", path)
    _check_values(schema, path)
    _check_object(schema, path)
    for key in _TABLES:
        for name, part in mapped(schema.get(key)).items():
            _check_part(part, document, f"{path}/{key}/{name}")
    for index, part in enumerate(listed(schema.get("anyOf"))):
        _check_part(part, document, f"{path}/anyOf/{index}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), list):
            raise _unenforced(f"a list of {key}", path)
        if key in schema and schema[key] is not False:
            _check_part(schema[key], document, f"{path}/{key}")


def _check_form(schema: dict[str, Any], path: str) -> None:
    """Raises GrammarError for a keyword with a value of another kind than it takes."""
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not names or not all(isinstance(name, str) and name in _TYPES for name in names):
            raise _malformed(f"{path}/type", schema["type"], f"of {', '.join(sorted(_TYPES))}")
    for key in _TABLES:
        if key in schema and not isinstance(schema[key], dict):
            raise _malformed(f"{path}/{key}", schema[key], "an object")
    for key in ("enum", "anyOf"):
        if key in schema and not (isinstance(schema[key], list) and schema[key]):
            raise _malformed(f"{path}/{key}", schema[key], "a list that is not empty")
    names = schema.get("required", [])
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise _malformed(f"{path}/required", names, "a list of names")
    for least, most in _COUNTS:
        for key in (least, most):
            if key in schema and not _is_count(schema[key]):
                raise _malformed(f"{path}/{key}", schema[key], "a whole number from 0 on")
        if schema.get(least, 0) > schema.get(most, schema.get(least, 0)):
            raise _malformed(f"{path}/{least}", schema[least], f"at most {most}, {schema[most]}")


def _check_reference(schema: dict[str, Any], document: SchemaDocument, path: str) -> None:
    if "$ref" not in schema:
        return
    reference = schema["$ref"]
    if not isinstance(reference, str):
        raise _malformed(f"{path}/$ref", reference, "a string")
    if reference != "#" and not reference.startswith("#/"):
        raise _unenforced(f"the '$ref' {reference[:80]!r}", path)
    if document.resolve(reference) is None:
        raise GrammarError(f"the '$ref' {reference[:80]!r} at {path} leads to no schema")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_values(schema: dict[str, Any], path: str) -> None:
    values = [*listed(schema.get("enum")), *([schema["const"]] if "const" in schema else [])]
    for value in values:
        whole = schema.get("type") != "integer" or isinstance(value, int)
        if type_of(value) not in type_names(schema.get("type")) or not whole:
            raise _unenforced(f"'type' for {value!r}", path)


def _check_object(schema: dict[str, Any], path: str) -> None:
    properties = mapped(schema.get("properties"))
    unnamed = [name for name in listed(schema.get("required")) if name not in properties]
    if unnamed:
        raise _unenforced(f"that {unnamed[0]!r} is required, which is no property,", path)
    if properties and schema.get("additionalProperties") not in (None, False):
        # A declared key could come again as an additional one, with any value.
        raise _unenforced("'additionalProperties'", path)
    if (properties or "items" in schema) and not isinstance(schema.get("type"), str):
        raise _unenforced("more or less than one 'type'", path)


def _malformed(path: str, value: Any, wanted: str) -> GrammarError:
    return GrammarError(f"{path} is {repr(value)[:80]}, but must be {wanted}")


def _unenforced(what: str, path: str) -> GrammarError:
    return GrammarError(f"xgrammar does not enforce {what} at {path}", reason="unsupported")
