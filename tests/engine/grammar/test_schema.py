"""Rewriting never lets in a document that the schema forbids, and refusals are certain."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from tests.engine.grammar.schemas import documents, schemas

from baton.engine.grammar.schema.disjoint import Disjointness
from baton.engine.grammar.schema.document import SchemaDocument
from baton.engine.grammar.schema.embedded import change_embedded
from baton.engine.grammar.schema.finite import has_finite_document
from baton.engine.grammar.schema.negate import Negation, other_words
from baton.engine.grammar.schema.plain import check_plain
from baton.engine.grammar.schema.rewrite import drop_annotations, rewrite
from baton.protos.errors import GrammarError

some_documents = st.lists(documents, min_size=1, max_size=20)


@settings(max_examples=120, deadline=None)
@given(schemas, some_documents)
def test_rewriting_only_ever_narrows(schema: Any, tried: list[Any]) -> None:
    before, after = Draft7Validator(schema), Draft7Validator(rewrite(schema))
    for document in tried:
        if after.is_valid(document):
            assert before.is_valid(document)


@settings(max_examples=120, deadline=None)
@given(schemas, some_documents)
def test_a_negation_and_its_schema_never_hold_together(schema: Any, tried: list[Any]) -> None:
    opposite = Negation(SchemaDocument(schema)).negate(schema)
    for document in tried:
        both = Draft7Validator(opposite).is_valid(document)
        assert not (both and Draft7Validator(schema).is_valid(document))


@settings(max_examples=120, deadline=None)
@given(schemas, schemas, some_documents)
def test_disjoint_schemas_share_no_document(one: Any, other: Any, tried: list[Any]) -> None:
    root = {"$schema": "http://json-schema.org/draft-07/schema#"}
    if Disjointness(SchemaDocument(root)).disjoint(one, other):
        for document in tried:
            both = Draft7Validator(one).is_valid(document)
            assert not (both and Draft7Validator(other).is_valid(document))


@settings(max_examples=80, deadline=None)
@given(schemas, some_documents)
def test_a_schema_with_a_valid_document_is_finite(schema: Any, tried: list[Any]) -> None:
    if any(Draft7Validator(schema).is_valid(document) for document in tried):
        assert has_finite_document(schema)


EXACT = [
    # schema, valid, invalid: what rewriting must neither widen nor narrow.
    (
        {"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object"},
        [{"a": 1}, {"b": 1}],
        [{}, {"a": 1, "b": 1}],
    ),
    ({"not": {"required": ["a", "b"]}, "type": "object"}, [{}, {"a": 1}], [{"a": 1, "b": 2}]),
    ({"type": "integer", "minimum": 0, "not": {"enum": [3, 5]}}, [0, 4, 6], [3, 5, -1]),
    (
        {"type": "string", "not": {"enum": ["red", "re", ""]}},
        ["r", "red1", "blue"],
        ["red", "re", ""],
    ),
    (
        {
            "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
            "then": {"required": ["b"]},
            "else": {"required": ["c"]},
            "type": "object",
        },
        [{"a": 1, "b": 2}, {"c": 1}],
        [{"a": 1}, {"a": 2}],
    ),
    ({"dependencies": {"a": ["b"]}, "type": "object"}, [{}, {"a": 1, "b": 1}], [{"a": 1}]),
    ({"type": "string", "format": "colour"}, ["", "x"], [1]),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, [[], [1]], [[1, 2]]),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), EXACT)
def test_rewriting_is_exact_where_it_can_be(
    schema: dict[str, Any], valid: list[Any], invalid: list[Any]
) -> None:
    rewritten = rewrite(schema)
    hard = {"not", "oneOf", "if", "dependencies", "uniqueItems"}
    assert not hard & set(json.dumps(rewritten).replace('"', " ").split())
    validator = Draft7Validator(rewritten)
    assert all(validator.is_valid(document) for document in valid)
    assert not any(validator.is_valid(document) for document in invalid)


def test_dropping_annotations_keeps_the_formats_that_demand_something() -> None:
    schema = {"properties": {"a": {"format": "date"}, "b": {"format": "colour", "type": "string"}}}
    kept = {"properties": {"a": {"format": "date"}, "b": {"type": "string"}}}
    assert drop_annotations(schema) == kept


@given(
    st.lists(st.text("ab]^-\\.é", max_size=3), min_size=1, max_size=4, unique=True),
    st.text("ab]^-\\.é", max_size=4),
)
def test_other_words_are_all_but_the_words(words: list[str], text: str) -> None:
    import re

    assert bool(re.fullmatch(other_words(words), text)) is (text not in words)


@pytest.mark.parametrize(
    ("schema", "finite"),
    [
        ({"$ref": "#"}, False),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, False),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}}, True),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, False),
        ({"type": "array", "items": {"$ref": "#"}}, True),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, True),
        (
            {
                "$defs": {"x": {"$ref": "#/$defs/y"}, "y": {"$ref": "#/$defs/z"}, "z": {}},
                "$ref": "#/$defs/x",
            },
            True,
        ),
        (
            {
                "$defs": {"x": {"$ref": "#/$defs/y"}, "y": {"$ref": "#/$defs/x"}},
                "$ref": "#/$defs/x",
            },
            False,
        ),
    ],
)
def test_recursion_without_a_base(schema: dict[str, Any], finite: bool) -> None:
    assert has_finite_document(schema) is finite


def test_exponential_schemas_are_refused_in_bounded_work() -> None:
    choice = [
        {"required": [f"a{i}"], "properties": {f"a{i}": {"not": {"const": i}}}} for i in range(9)
    ]
    for _ in range(6):
        choice = [{"oneOf": choice}, {"oneOf": choice, "not": {"oneOf": choice}}]
    with pytest.raises(GrammarError, match="too complex"):
        rewrite({"oneOf": choice})


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}},
            "'pattern' at #/properties/a",
        ),
        ({"allOf": [{}]}, "'allOf' at #"),
        ({"anyOf": [{"type": "string"}], "type": "string"}, "beside 'anyOf'"),
        ({"type": "object", "required": ["a"]}, "'a' is required"),
        ({"type": "object", "enum": ["a"]}, "'type' for 'a'"),
        (
            {"type": "object", "properties": {"a": {}}, "additionalProperties": True},
            "additionalProperties",
        ),
        ({"properties": {"a": {}}}, "one 'type'"),
        ({"$ref": "https://a.org/b"}, "'$ref' 'https://a.org/b' at #"),
        ({"$ref": "#anchor"}, "'$ref' '#anchor' at #"),
        ({"$ref": 1}, "#/$ref is 1"),
        ({"type": "strng"}, "#/type is 'strng'"),
        ({"type": []}, "#/type is []"),
        ({"type": "array", "items": None}, "#/items is None"),
        ({"type": "array", "minItems": True}, "#/minItems is True"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "#/minItems is 2"),
        ({"type": "string", "maxLength": 1.5}, "#/maxLength is 1.5"),
        ({"enum": []}, "#/enum is []"),
        ({"anyOf": [3]}, "#/anyOf/0 is 3"),
        ({"type": "object", "properties": {"a": None}}, "#/properties/a is None"),
        ({"type": "object", "required": "a"}, "#/required is 'a'"),
        ({"$defs": []}, "#/$defs is []"),
    ],
)
def test_what_xgrammar_does_not_enforce_is_named(schema: dict[str, Any], named: str) -> None:
    with pytest.raises(GrammarError) as refused:
        check_plain(schema)
    assert named in refused.value.message


def test_schemas_inside_lark_rules_are_changed_too() -> None:
    one, two = '{"format": "colour", "x": "%json {"}', '{"type": "null"}'
    lark = f'start: "<%json" %json {one} | %json{two} | %json {{broken'
    changed = change_embedded(lark, drop_annotations)
    assert (
        changed == 'start: "<%json" %json {"x": "%json {"} | %json{"type": "null"} | %json {broken'
    )
