"""What grammars of calls let through is what parsers read, and valid by the tools' schemas."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from typing import Any

import llguidance
import pytest
from jsonschema import Draft202012Validator
from tests.gateway.serving import MODEL_DIR, tokenizer

from baton.gateway.config import GatewayConfig
from baton.gateway.constrain import CallDemand, constrain
from baton.gateway.dialect import Dialect, load_dialect
from baton.gateway.openai_messages import Function, Tool, ToolChoice
from baton.gateway.parsers.formats import CallFrame, ToolFormat, parse, tool_parser
from baton.gateway.parsers.tool_formats import TOOL_FORMATS
from baton.protos.constraints import Grammar, GrammarKind
from baton.protos.errors import UnprocessableError

FRAMED = [form for form in TOOL_FORMATS if form.frame is not None]
each_frame = pytest.mark.parametrize("form", FRAMED, ids=lambda form: form.names[0])
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "array"}},
    "required": ["city"],
}
ARGUMENTS = {"city": "Köln {[", "days": [1, None]}


@cache
def spoken() -> Dialect:
    return load_dialect(GatewayConfig(model_dir=MODEL_DIR), tokenizer())


@cache
def native() -> Any:
    path = f"{MODEL_DIR}/tokenizer.json"
    return llguidance.LLTokenizer(path, n_vocab=1024, eos_token=[2, 0])


def demand(mode: str, **fields: Any) -> CallDemand:
    tools = [
        Tool(type="function", function=Function(name=name, parameters=CITY, strict=strict))
        for name, strict in (("get_weather", True), ("get_time", False))
    ]
    choice = ToolChoice(mode=mode)  # type: ignore[arg-type]
    return CallDemand(tools=tools, choice=choice, **fields)


def grammar_of(form: ToolFormat, wanted: CallDemand, output: Grammar | None = None) -> Grammar:
    grammar = constrain(dataclasses.replace(spoken(), tool=form), wanted, output).grammar
    assert grammar is not None
    assert grammar.kind is GrammarKind.LARK
    return grammar


def lets_through(grammar: Grammar, text: str) -> bool:
    matcher = llguidance.LLMatcher(
        native(), llguidance.LLMatcher.grammar_from_lark(grammar.source), log_level=0
    )
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer().encode(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def written(frame: CallFrame, *arguments: Any, name: str = "get_weather") -> str:
    calls = [
        frame.begin_of(name) + json.dumps(a, ensure_ascii=False) + frame.end for a in arguments
    ]
    return frame.opening + frame.separator.join(calls) + frame.closing


@each_frame
def test_what_a_grammar_forces_is_what_the_parser_reads(form: ToolFormat) -> None:
    frame = form.frame
    assert frame is not None
    text = written(frame, *[ARGUMENTS] * (1 + frame.several))
    assert text.startswith(frame.trigger)
    found = parse(tool_parser(form), list(text))
    assert [c.name for c in found.tool_calls] == ["get_weather"] * (1 + frame.several)
    assert all(json.loads(c.arguments) == ARGUMENTS for c in found.tool_calls)
    assert not found.content.strip()
    grammar = grammar_of(form, demand("required"))
    assert lets_through(grammar, text)
    assert lets_through(grammar, "\n\n" + text)
    one = grammar_of(form, demand("required", parallel=False))
    assert lets_through(one, text) is not frame.several
    assert lets_through(one, written(frame, ARGUMENTS))


@each_frame
def test_what_a_grammar_refuses(form: ToolFormat) -> None:
    frame = form.frame
    assert frame is not None
    grammar = grammar_of(form, demand("required"))
    assert not lets_through(grammar, written(frame, {"city": 1}))
    assert not lets_through(grammar, written(frame, {"days": []}))
    assert not lets_through(grammar, written(frame, {"city": "Köln", "undeclared": 1}))
    assert not lets_through(grammar, written(frame, ARGUMENTS, name="get_stars"))
    assert not lets_through(grammar, "Hello")
    assert not lets_through(grammar, written(frame, ARGUMENTS)[:-1])


@pytest.mark.parametrize(
    "form", [f for f in FRAMED if f.frame and f.frame.trigger], ids=lambda form: form.names[0]
)
def test_calls_in_text_follow_the_schemas_of_strict_functions(form: ToolFormat) -> None:
    frame = form.frame
    assert frame is not None
    grammar = grammar_of(form, demand("auto"))
    assert lets_through(grammar, "")
    assert lets_through(grammar, "Hello {[<")
    assert lets_through(grammar, "See: " + written(frame, ARGUMENTS))
    assert lets_through(grammar, written(frame, {"days": 5}, name="get_time"))
    assert not lets_through(grammar, "See: " + written(frame, {"days": 5}))
    assert not lets_through(grammar, "See: " + written(frame, ARGUMENTS, name="get_stars"))


@pytest.mark.parametrize(
    ("kind", "source", "good"),
    [
        (GrammarKind.JSON_OBJECT, "", '{"a": [1, 2]}'),
        (GrammarKind.JSON_SCHEMA, '{"type": "integer"}', "12"),
        (GrammarKind.REGEX, "a/b\n+", "a/b\n\n"),
        (GrammarKind.CHOICE, '["yes \\"x\\"", "no"]', 'yes "x"'),
    ],
)
def test_calls_or_a_form(kind: GrammarKind, source: str, good: str) -> None:
    form = spoken().tool
    assert form is not None
    assert form.frame is not None
    output = Grammar(kind=kind, source=source, param="guided")
    grammar = grammar_of(form, demand("auto"), output)
    assert grammar.param == "guided"
    assert lets_through(grammar, good)
    assert lets_through(grammar, written(form.frame, ARGUMENTS))
    assert not lets_through(grammar, good + "x")
    assert not lets_through(grammar, written(form.frame, {"city": 1}))


def test_what_cannot_be_one_grammar_is_refused() -> None:
    output = Grammar(kind=GrammarKind.EBNF, source='root ::= "a"', param="guided_grammar")
    with pytest.raises(UnprocessableError, match=r"guided_grammar and tools .* of the kind ebnf"):
        constrain(spoken(), demand("auto"), output)
    assert (
        constrain(
            spoken(),
            demand(
                "auto",
            ),
            None,
        ).grammar
        is not None
    )


def test_a_list_of_calls_keeps_references_within_each_schema() -> None:
    node = {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "kind": {"$ref": "#/$defs/kind"}},
        "$defs": {"kind": {"enum": ["a"]}},
    }
    tools = [
        Tool(type="function", function=Function(name=name, parameters=node)) for name in ("f", "g")
    ]
    form = next(form for form in TOOL_FORMATS if "qwen3_coder" in form.names)
    wanted = CallDemand(tools=tools, choice=ToolChoice(mode="required"), parallel=False)
    grammar = constrain(dataclasses.replace(spoken(), tool=form), wanted, None).grammar
    assert grammar is not None
    validator = Draft202012Validator(json.loads(grammar.source))
    good = {"name": "g", "arguments": {"kind": "a", "next": {"kind": "a"}}}
    assert validator.is_valid([good])
    assert not validator.is_valid([good, good])
    assert not validator.is_valid([{**good, "arguments": {"next": {"kind": "b"}}}])
    assert not validator.is_valid([{**good, "name": "h"}])
