"""Hypothesis strategies: schemas of every keyword that is rewritten, and documents to try them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

names = st.sampled_from(["a", "b", "c"])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([0.5, 2.5]),
    st.sampled_from(["", "x", "yy", "red", "blue", "red\n", "2020-01-01"]),
)
documents: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
types = st.sampled_from(
    [
        "null",
        "boolean",
        "object",
        "array",
        "number",
        "integer",
        "string",
        ["string", "null"],
        ["object", "array"],
    ]
)
counts = st.integers(0, 3)
leaves = st.one_of(
    st.booleans(),
    st.fixed_dictionaries({"type": types}),
    st.fixed_dictionaries({"enum": st.lists(scalars, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"const": scalars}),
    st.fixed_dictionaries({"type": st.just("string"), "minLength": counts, "maxLength": counts}),
    st.fixed_dictionaries({"type": st.just("integer"), "minimum": st.integers(-2, 5)}),
    st.fixed_dictionaries({"exclusiveMaximum": st.integers(0, 9)}),
    st.fixed_dictionaries({"pattern": st.sampled_from(["^red$", "^(red|blue)$", "^x", "y"])}),
    st.fixed_dictionaries({"format": st.sampled_from(["date", "colour", "uri-reference"])}),
    st.fixed_dictionaries({"required": st.lists(names, max_size=2, unique=True)}),
    st.fixed_dictionaries({"minItems": counts}),
    st.fixed_dictionaries({"maxProperties": counts}),
)


def _combined(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=3)
    needs = st.dictionaries(names, st.lists(names, max_size=2, unique=True) | inner, max_size=2)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": types,
            "properties": st.dictionaries(names, inner, max_size=3),
            "required": st.lists(names, max_size=2, unique=True),
            "additionalProperties": inner,
            "items": inner,
            "not": inner,
            "allOf": some,
            "anyOf": some,
            "oneOf": some,
            "if": inner,
            "then": inner,
            "else": inner,
            "dependencies": needs,
            "uniqueItems": st.booleans(),
            "contains": inner,
            "propertyNames": st.just({"type": "string"}) | inner,
        },
    )


# Draft 7 knows all of these keywords; the document wins over what the validator assumes.
schemas: st.SearchStrategy[Any] = st.recursive(leaves, _combined, max_leaves=8).map(
    lambda schema: (
        {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
        if isinstance(schema, dict)
        else schema
    )
)
