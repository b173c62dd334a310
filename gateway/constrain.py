"""Grammars that keep calls valid, alone or beside a form that the answer itself must have.

A required call is written in the model's own format where that can be a grammar (`CallFrame`), as a
structural tag. Other formats' calls are required as a JSON list, as other servers do for all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from baton.gateway.openai_format import dumps
from baton.gateway.openai_messages import Tool, ToolChoice
from baton.gateway.parsers.formats import CallFrame, StreamParser, ToolFormat
from baton.gateway.parsers.json_calls import JsonCalls
from baton.gateway.parsers.machine import MachineParser
from baton.gateway.parsers.schema import ToolSchemas
from baton.protos.constraints import Grammar, GrammarKind
from baton.protos.errors import UnprocessableError

Format = dict[str, Any]

_JSON_LIST = JsonCalls(starts=(), bare="[")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDemand:
    """The tools that a request offers, and what it says of calling them."""

    tools: Sequence[Tool]
    choice: ToolChoice
    parallel: bool = True

    @property
    def required(self) -> bool:
        return bool(self.tools) and self.choice.mode == "required"

    @property
    def callable(self) -> list[Tool]:
        """The tools that may be called."""
        names = self.choice.names
        return [tool for tool in self.tools if names is None or tool.function.name in names]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """`parser`: reads calls that are not in the model's own format."""

    grammar: Grammar | None
    parser: Callable[[], StreamParser] | None = None


def constrain(form: ToolFormat | None, demand: CallDemand, output: Grammar | None) -> Constraint:
    """The grammar of a request's answers.

    A required call is all of the answer, so that `output` does not bear on it. Where the model may
    choose, the answer is either calls or matches `output`; strict functions then hold, too. Raises
    UnprocessableError where the two cannot be one grammar.
    """
    if not demand.tools or form is None:
        return Constraint(grammar=output)
    if demand.required:
        return _required(form, demand)
    if output is not None:
        return Constraint(grammar=_either(form, demand, output))
    if (
        form.frame is not None
        and form.frame.trigger
        and any(tool.function.strict for tool in demand.tools)
    ):
        return Constraint(grammar=_tag(_strict_calls(form.frame, demand)))
    return Constraint(grammar=None)


def _required(form: ToolFormat, demand: CallDemand) -> Constraint:
    if form.frame is not None:
        return Constraint(grammar=_tag(_calls(form.frame, demand)))
    grammar = Grammar(
        kind=GrammarKind.JSON_SCHEMA, source=dumps(_list_schema(demand)), param="tools"
    )
    grammar.validate()
    return Constraint(grammar=grammar, parser=lambda: MachineParser(_JSON_LIST, ToolSchemas(None)))


def _tag(content: Format, output: Grammar | None = None) -> Grammar:
    grammar = Grammar(
        kind=GrammarKind.STRUCTURAL_TAG,
        source=dumps({"type": "structural_tag", "format": content}),
        param="tools" if output is None else output.param,
    )
    grammar.validate()
    return grammar


def _calls(frame: CallFrame, demand: CallDemand, *, loose: bool = False) -> Format:
    """One call or several, and nothing else. `loose`: arguments of functions that are not strict
    are any object.
    """
    tags = [_call(frame, tool, loose and not tool.function.strict) for tool in demand.callable]
    calls: Format = {
        "type": "tags_with_separator",
        "tags": tags,
        "separator": frame.separator,
        "at_least_one": True,
        "stop_after_first": not demand.parallel or not frame.several,
    }
    return calls if not frame.opening else _within(frame, calls)


def _within(frame: CallFrame, calls: Format) -> Format:
    return {"type": "tag", "begin": frame.opening, "content": calls, "end": frame.closing}


def _call(frame: CallFrame, tool: Tool, loose: bool) -> Format:
    name = tool.function.name
    schema = {"type": "object"} if loose else tool.function.arguments_schema
    return {
        "type": "tag",
        "begin": frame.begin_of(name),
        "content": {"type": "json_schema", "json_schema": schema},
        "end": frame.end,
    }


def _strict_calls(frame: CallFrame, demand: CallDemand) -> Format:
    """Any text, with calls in it that are valid."""
    calls = _calls(frame, demand, loose=True)
    tags = [calls] if frame.opening else calls["tags"]
    return {
        "type": "triggered_tags",
        "triggers": [frame.trigger],
        "tags": tags,
        "at_least_one": False,
        "stop_after_first": not demand.parallel,
    }


def _either(form: ToolFormat, demand: CallDemand, output: Grammar) -> Grammar:
    content = _as_format(output)
    if form.frame is None or content is None:
        what = f"the format {form.names[0]!r}" if form.frame is None else "a Lark grammar"
        raise UnprocessableError(
            f"{output.param} and tools cannot be combined for {what} while the model may choose: "
            "set tool_choice to 'none' or 'required'",
            param=output.param,
        )
    return _tag(
        {"type": "or", "elements": [content, _calls(form.frame, demand, loose=True)]}, output
    )


def _as_format(output: Grammar) -> Format | None:
    """A grammar as a part of a structural tag; None if it cannot be one."""
    kind, source = output.kind, output.source
    if kind is GrammarKind.JSON_OBJECT:
        return {"type": "json_schema", "json_schema": {"type": "object"}}
    if kind is GrammarKind.JSON_SCHEMA:
        return {"type": "json_schema", "json_schema": json.loads(source)}
    if kind is GrammarKind.REGEX:
        return {"type": "regex", "pattern": source}
    if kind is GrammarKind.EBNF:
        return {"type": "grammar", "grammar": source}
    if kind is GrammarKind.CHOICE:
        texts = json.loads(source)
        return {"type": "or", "elements": [{"type": "const_string", "value": t} for t in texts]}
    tag = json.loads(source) if kind is GrammarKind.STRUCTURAL_TAG else {}
    return tag.get("format") if isinstance(tag, dict) else None


def _list_schema(demand: CallDemand) -> dict[str, Any]:
    tools = demand.callable
    schemas = {
        f"tool_{i}": _moved(t.function.arguments_schema, f"tool_{i}") for i, t in enumerate(tools)
    }
    items = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": {"$ref": f"#/$defs/tool_{i}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for i, tool in enumerate(tools)
    ]
    schema: dict[str, Any] = {"type": "array", "items": {"anyOf": items}, "minItems": 1}
    if not demand.parallel:
        schema["maxItems"] = 1
    return {**schema, "$defs": schemas}


def _moved(schema: Any, name: str) -> Any:
    """A schema that is now a definition: references to its own root lead there."""
    if isinstance(schema, list):
        return [_moved(item, name) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, name) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = f"#/$defs/{name}{reference[1:]}"
    return moved
