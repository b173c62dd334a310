"""The form of an answer: every name of it reaches the worker, and what cannot be is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.gateway.fakes import FakeFleet
from tests.gateway.serving import check_error, says, serving

from baton.protos.errors import GrammarError

SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}
TAG = {"type": "structural_tag", "format": {"type": "any_text"}}
OLD_TAG = {"type": "structural_tag", "triggers": ["<f"], "structures": []}
NAMED = {"name": "size", "schema": SCHEMA, "strict": True}
PATH = "response_format.json_schema.schema"


@pytest.mark.parametrize("endpoint", ["chat", "complete"])
@pytest.mark.parametrize(
    ("fields", "kind", "source", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", "", "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": NAMED}},
            "json_schema",
            SCHEMA,
            PATH,
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "any"}}},
            "json_object",
            "",
            "response_format",
        ),
        ({"response_format": TAG}, "structural_tag", TAG, "response_format"),
        ({"response_format": OLD_TAG}, "structural_tag", OLD_TAG, "response_format"),
        ({"guided_json": SCHEMA}, "json_schema", SCHEMA, "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", SCHEMA, "guided_json"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_choice": ["a", "b"]}, "choice", ["a", "b"], "guided_choice"),
        ({"guided_grammar": 'root ::= "a"'}, "ebnf", 'root ::= "a"', "guided_grammar"),
        ({"guided_grammar": 'start: "a"'}, "lark", 'start: "a"', "guided_grammar"),
        ({"structural_tag": TAG}, "structural_tag", TAG, "structural_tag"),
        (
            {"structured_outputs": {"json": SCHEMA}},
            "json_schema",
            SCHEMA,
            "structured_outputs.json",
        ),
        (
            {"structured_outputs": {"json_object": True}},
            "json_object",
            "",
            "structured_outputs.json_object",
        ),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a"]}}, "choice", ["a"], "structured_outputs.choice"),
    ],
)
async def test_forms(
    endpoint: str, fields: dict[str, Any], kind: str, source: Any, param: str
) -> None:
    async with serving(FakeFleet(says("{}"))) as gateway:
        response = await getattr(gateway, endpoint)(**fields)
        assert response.status_code == 200, response.text
        grammar = gateway.fleet.requests[0].grammar
        assert grammar is not None
        assert (grammar.kind, grammar.param) == (kind, param)
        found = grammar.source if isinstance(source, str) else json.loads(grammar.source)
        if endpoint == "chat" and kind == "regex":
            source = r"\n{0,2}(?:a+)"
        if endpoint == "chat" and kind == "choice":
            source = [lead + text for lead in ("", "\n", "\n\n") for text in source]
        assert found == source
        assert (gateway.fleet.requests[0].thought is None) == (endpoint == "complete")


async def test_backend_and_white_space() -> None:
    outputs = {"json": SCHEMA, "disable_any_whitespace": True, "backend": "guidance"}
    async with serving(FakeFleet(says("{}"))) as gateway:
        await gateway.chat(structured_outputs=outputs)
        await gateway.chat(guided_json=SCHEMA, guided_decoding_backend="xgrammar")
        await gateway.chat(response_format={"type": "text"})
        first, second, third = (request.grammar for request in gateway.fleet.requests)
        assert first is not None
        assert (first.backend, first.whitespace) == ("guidance", False)
        assert second is not None
        assert (second.backend, second.whitespace) == ("xgrammar", True)
        assert third is None


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            422,
            "guided_regex",
            ["response_format", "guided_regex"],
        ),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            422,
            "structured_outputs.choice",
            ["structured_outputs.regex", "structured_outputs.choice"],
        ),
        ({"guided_json": "{"}, 400, "guided_json", ["not JSON"]),
        ({"guided_choice": []}, 400, "guided_choice", ["at least one"]),
        ({"guided_regex": ""}, 400, "guided_regex", ["empty"]),
        (
            {"guided_regex": "a", "guided_decoding_backend": "outlines"},
            400,
            "guided_decoding_backend",
            ["'outlines'", "xgrammar"],
        ),
        (
            {"response_format": {"type": "json_schema"}},
            400,
            "response_format.json_schema",
            ["missing"],
        ),
        ({"response_format": {"type": "yaml"}}, 400, "response_format.type", ["json_schema"]),
        ({"response_format": {"type": "structural_tag"}}, 400, "response_format", ["triggers"]),
        (
            {"structured_outputs": {"whitespace_pattern": " "}},
            400,
            "structured_outputs.whitespace_pattern",
            ["not a field"],
        ),
    ],
)
async def test_refusals(fields: dict[str, Any], status: int, param: str, words: list[str]) -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        error = check_error(await gateway.chat(**fields), status, param)
        assert all(word in error["message"] for word in words), error
        assert not gateway.fleet.requests


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_by_the_worker_reaches_the_client(stream: bool) -> None:
    fleet = FakeFleet(says("x"))
    fleet.error = GrammarError("the schema recurses without an end", param="guided_json")
    async with serving(fleet) as gateway:
        response = await gateway.chat(guided_json=SCHEMA, stream=stream)
        error = check_error(response, 400, "guided_json")
        assert error["code"] == "invalid_grammar"
        assert "recurses" in error["message"]


@pytest.mark.parametrize("endpoint", ["chat", "complete"])
async def test_an_answer_says_who_enforced_its_grammar(endpoint: str) -> None:
    async with serving(FakeFleet(says("a b"))) as gateway:
        ask = getattr(gateway, endpoint)
        whole = (await ask(guided_json=SCHEMA)).json()["choices"][0]
        assert whole["grammar_backend"] == "guidance"
        assert "grammar_backend" not in (await ask()).json()["choices"][0]
        lines = (await ask(guided_json=SCHEMA, stream=True)).text.split("\n\n")
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if "{" in line]
        told = [c["choices"][0].get("grammar_backend") for c in chunks if c["choices"]]
        assert told[-1] == "guidance"
        assert not any(told[:-1])
