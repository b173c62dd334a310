"""Rewrites the keywords that no backend enforces into those that llguidance does."""

from __future__ import annotations

from typing import Any, Final

from baton.engine.grammar.schema.disjoint import Disjointness
from baton.engine.grammar.schema.document import (
    Schema,
    SchemaDocument,
    listed,
    mapped,
    type_names,
)
from baton.engine.grammar.schema.negate import Negation, all_of, any_of

# Formats that the drafts define. Any other is an annotation, which demands nothing.
_STANDARD_FORMATS: Final = frozenset(
    [
        "date-time",
        "time",
        "date",
        "duration",
        "email",
        "idn-email",
        "hostname",
        "idn-hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uri-reference",
        "iri",
        "iri-reference",
        "uuid",
        "uri-template",
        "json-pointer",
        "relative-json-pointer",
        "regex",
    ]
)
# Formats that llguidance does not know, as patterns that allow only what is valid.
_PATH: Final = r"[A-Za-z0-9._~!$&'()*+,;=@/-]"
_FORMATS_AS_PATTERNS: Final = {
    "uri-reference": rf"^(?:[a-z][a-z0-9+.-]{{0,20}}:)?{_PATH}*(?:\?{_PATH}*)?(?:#{_PATH}*)?$",
    "json-pointer": r"^(?:/(?:[^~/\x00-\x1f]|~[01])*)*$",
    "relative-json-pointer": r"^(?:0|[1-9][0-9]*)(?:#|(?:/(?:[^~/\x00-\x1f]|~[01])*)*)$",
}
# Formats that ask less than one which llguidance knows.
_NARROWER_FORMATS: Final = {
    "idn-email": "email",
    "idn-hostname": "hostname",
    "iri": "uri",
    "iri-reference": "uri",
    "uri-template": "uri",
}
_ONE: Final = (
    "additionalProperties",
    "items",
    "additionalItems",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
    "unevaluatedProperties",
    "unevaluatedItems",
)
_MANY: Final = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED: Final = (
    "properties",
    "patternProperties",
    "definitions",
    "$defs",
    "dependencies",
    "dependentSchemas",
)
_ARRAY_ONLY: Final = ("uniqueItems", "contains", "minContains", "maxContains")


def drop_annotations(schema: Schema) -> Schema:
    """The schema without formats that demand nothing; llguidance refuses what it does not know."""
    return _Rewriter(SchemaDocument(schema), formats_only=True).rewrite(schema)


def rewrite(schema: Schema) -> Schema:
    """The schema without not, oneOf, if, dependencies and trivial uniqueItems and propertyNames.

    What cannot be rewritten stays, for a backend to refuse. Raises GrammarError when the work is
    too much.
    """
    return _Rewriter(SchemaDocument(schema), formats_only=False).rewrite(schema)


class _Rewriter:
    def __init__(self, document: SchemaDocument, *, formats_only: bool) -> None:
        self._document = document
        self._formats_only = formats_only
        self._disjointness = Disjointness(document)
        self._negation = Negation(document)

    def rewrite(self, schema: Schema) -> Schema:
        self._document.visit()
        if not isinstance(schema, dict):
            return schema
        result = self._rewrite_inside(schema)
        _settle_format(result)
        if self._formats_only or ("$ref" in schema and self._document.ref_stands_alone):
            return result
        extra: list[Schema] = []
        self._settle_not(schema, result, extra)
        self._settle_one_of(schema, result, extra)
        self._settle_if(schema, result, extra)
        self._settle_dependencies(schema, result, extra)
        _settle_trivial(result)
        if extra:
            result["allOf"] = [*listed(result.get("allOf")), *extra]
        return result

    def _rewrite_inside(self, schema: dict[str, Any]) -> dict[str, Any]:
        result = dict(schema)
        for key in _ONE:
            if isinstance(schema.get(key), dict):
                result[key] = self.rewrite(schema[key])
        for key in _MANY:
            if isinstance(schema.get(key), list):
                result[key] = [self.rewrite(part) for part in schema[key]]
        for key in _NAMED:
            if isinstance(schema.get(key), dict):
                result[key] = {name: self.rewrite(part) for name, part in schema[key].items()}
        return result

    # Each of these takes a keyword out of `result` if it can be said by others. Negations are of
    # the schema as it came, and are themselves rewritten: they may hold any keyword.

    def _settle_not(self, schema: Schema, result: dict[str, Any], extra: list[Schema]) -> None:
        if "not" not in schema:
            return
        opposite = self._negate(schema["not"])
        if opposite is not False or schema["not"] is True or schema["not"] == {}:
            del result["not"]
            extra.append(opposite)

    def _settle_one_of(self, schema: Schema, result: dict[str, Any], extra: list[Schema]) -> None:
        branches = listed(schema.get("oneOf"))
        if not branches:
            return
        alone: list[Schema] = []
        for index, branch in enumerate(branches):
            rivals = [
                other
                for place, other in enumerate(branches)
                if place != index and not self._disjointness.disjoint(branch, other)
            ]
            opposites = [self._negate(rival) for rival in rivals]
            alone.append(all_of([result["oneOf"][index], *opposites]))
        union = any_of(alone)
        if union is not False:
            del result["oneOf"]
            extra.append(union)

    def _settle_if(self, schema: Schema, result: dict[str, Any], extra: list[Schema]) -> None:
        if "if" not in schema:
            result.pop("then", None)
            result.pop("else", None)
            return
        then = all_of([result["if"], result.get("then", True)])
        other = all_of([self._negate(schema["if"]), result.get("else", True)])
        union = any_of([then, other])
        if union is not False:
            for key in ("if", "then", "else"):
                result.pop(key, None)
            extra.append(union)

    def _settle_dependencies(
        self, schema: Schema, result: dict[str, Any], extra: list[Schema]
    ) -> None:
        for key in ("dependencies", "dependentRequired", "dependentSchemas"):
            if not isinstance(schema.get(key), dict):
                continue
            for name, needs in result.pop(key).items():
                absent: Schema = {"properties": {name: False}}
                wanted = {"required": needs} if isinstance(needs, list) else needs
                extra.append(any_of([absent, wanted]))

    def _negate(self, schema: Schema) -> Schema:
        return self.rewrite(self._negation.negate(schema))


def _settle_format(schema: dict[str, Any]) -> None:
    name = schema.get("format")
    if name is None:
        return
    if not isinstance(name, str) or name not in _STANDARD_FORMATS:
        del schema["format"]
    elif name in _NARROWER_FORMATS:
        schema["format"] = _NARROWER_FORMATS[name]
    elif name in _FORMATS_AS_PATTERNS:
        del schema["format"]
        only = {"type": "string", "pattern": _FORMATS_AS_PATTERNS[name]}
        others = {"type": [kind for kind in type_names(None) if kind != "string"]}
        schema["allOf"] = [*listed(schema.get("allOf")), {"anyOf": [only, others]}]


def _settle_trivial(schema: dict[str, Any]) -> None:
    """Takes out what demands nothing of the documents that are left."""
    names = schema.get("propertyNames")
    typed = isinstance(names, dict) and set(names) <= {"type"}
    if names is True or (typed and "string" in type_names(mapped(names).get("type"))):
        del schema["propertyNames"]
    most = schema.get("maxItems")
    if schema.get("uniqueItems") is False or (isinstance(most, int) and most <= 1):
        schema.pop("uniqueItems", None)
    if "array" not in type_names(schema.get("type")):
        for key in _ARRAY_ONLY:
            schema.pop(key, None)
