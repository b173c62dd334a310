"""Grammars that keep calls valid, alone or beside a form that the answer itself must have.

A required call is written in the model's own format where that can be a grammar (`CallFrame`).
Other formats' calls are required as a JSON list, as other servers do for all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from baton.gateway.dialect import Dialect
from baton.gateway.openai_format import dumps
from baton.gateway.openai_messages import Tool, ToolChoice
from baton.gateway.parsers.formats import CallFrame, StreamParser, ToolFormat
from baton.gateway.parsers.json_calls import JsonCalls
from baton.gateway.parsers.machine import MachineParser
from baton.gateway.parsers.schema import ToolSchemas
from baton.protos.constraints import Grammar, GrammarBackend, GrammarKind
from baton.protos.errors import UnprocessableError

_JSON_LIST = JsonCalls(starts=(), bare="[")
_PLAIN_OBJECT = {"type", "properties", "required", "title", "description", "$defs", "definitions"}
# JSON as json.dumps writes it, which is what models learn their calls from.
_COMPACT = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}


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


def constrain(dialect: Dialect, demand: CallDemand, output: Grammar | None) -> Constraint:
    """The grammar of a request's answers.

    A required call is all of the answer, so that `output` does not bear on it. Where the model may
    choose, the answer is either calls or matches `output`; strict functions then hold, too. Raises
    UnprocessableError where the two cannot be one grammar.
    """
    form = dialect.tool
    if not demand.tools or form is None:
        return Constraint(grammar=output if dialect.thought is None else _after_thought(output))
    frame = form.frame
    if demand.required:
        return _required(dialect, frame, demand)
    if output is not None:
        return Constraint(grammar=_either(dialect, form, demand, output))
    if frame is not None and frame.trigger and any(t.function.strict for t in demand.tools):
        return Constraint(grammar=_lark(CallRules(dialect, frame, demand, loose=True).among_text()))
    return Constraint(grammar=None)


def _after_thought(output: Grammar | None) -> Grammar | None:
    """The same with the line breaks before it that models write after a thought, and readers drop:
    without them a model is asked for what it never says. JSON has its own white space.
    """
    if output is None:
        return None
    if output.kind is GrammarKind.REGEX:
        return replace(output, source=f"\\n{{0,2}}(?:{output.source})")
    if output.kind is GrammarKind.CHOICE:
        texts = json.loads(output.source)
        leads = ("", "\n", "\n\n")
        return replace(output, source=dumps([lead + text for lead in leads for text in texts]))
    return output


def _required(dialect: Dialect, frame: CallFrame | None, demand: CallDemand) -> Constraint:
    if frame is not None:
        return Constraint(grammar=_lark(CallRules(dialect, frame, demand).alone()))
    grammar = Grammar(
        kind=GrammarKind.JSON_SCHEMA, source=dumps(_list_schema(demand)), param="tools"
    )
    grammar.validate()
    return Constraint(grammar=grammar, parser=lambda: MachineParser(_JSON_LIST, ToolSchemas(None)))


def _either(dialect: Dialect, form: ToolFormat, demand: CallDemand, output: Grammar) -> Grammar:
    rule = _as_rule(output)
    if form.frame is None or rule is None:
        what = (
            f"the format {form.names[0]!r}"
            if form.frame is None
            else f"a grammar of the kind {output.kind.value}"
        )
        raise UnprocessableError(
            f"{output.param} and tools cannot be combined for {what} while the model may choose: "
            "set tool_choice to 'none' or 'required'",
            param=output.param,
        )
    rules = CallRules(dialect, form.frame, demand, loose=True)
    return _lark(rules.or_else(rule), output)


def _lark(source: str, output: Grammar | None = None) -> Grammar:
    grammar = Grammar(
        kind=GrammarKind.LARK,
        source=source,
        backend=GrammarBackend.AUTO if output is None else output.backend,
        param="tools" if output is None else output.param,
    )
    grammar.validate()
    return grammar


class CallRules:
    """Lark rules of calls in one model's format, as llguidance reads them.

    Markers that are tokens of their own are named by their ids. `loose`: arguments of functions
    that are not strict are any object.
    """

    def __init__(
        self, dialect: Dialect, frame: CallFrame, demand: CallDemand, *, loose: bool = False
    ) -> None:
        self._text = dialect.text
        self._frame = frame
        self._several = demand.parallel and frame.several
        self._tools = demand.callable
        self._loose = loose
        # A thought's end is followed by line breaks.
        self._lead = '("\\n" | "\\n\\n")? ' if dialect.thought is not None else ""

    def alone(self) -> str:
        """Calls and nothing else."""
        return "\n".join([f"start: {self._lead}calls", *self._calls()])

    def or_else(self, rule: str) -> str:
        """Calls, or what the rule says."""
        return "\n".join([f"start: {self._lead}(calls | form)", f"form: {rule}", *self._calls()])

    def among_text(self) -> str:
        """Any text, with calls in it wherever the trigger is."""
        trigger: str | int = self._frame.trigger
        first = self._text.split_tokens(self._frame.trigger)[0]
        if isinstance(first, int):
            trigger = first
        # Text ends at the first trigger: so does a lazy rule, and no token of its own is text.
        lazy = "" if isinstance(trigger, int) else "[lazy]"
        return "\n".join(
            [
                f"start: marked{'*' if self._several else '?'} TEXT",
                r"TEXT: /(.|\n)*/",
                f"mark{lazy}: TEXT {self._literal([trigger])}",
                *self._marked(trigger),
            ]
        )

    def _marked(self, skipped: str | int) -> list[str]:
        """Rules of what follows the trigger, and of the trigger with it."""
        frame = self._frame
        if frame.opening:
            rest = self._literal(self._without(frame.opening, skipped))
            return [f"marked: mark {rest} {self._body()}", *self._call_rules()]
        ways = [
            f"{self._literal(self._without(frame.begin_of(tool.function.name), skipped))} "
            f"args_{i} {self._written(frame.end)}"
            for i, tool in enumerate(self._tools)
        ]
        return [f"marked: mark ({' | '.join(ways)})", *self._arguments()]

    def _without(self, text: str, skipped: str | int) -> list[str | int]:
        """The pieces of `text` after what the trigger has said of it."""
        if isinstance(skipped, int):
            return self._text.split_tokens(text)[1:]
        return self._text.split_tokens(text.removeprefix(skipped))

    def _calls(self) -> list[str]:
        opening = self._written(self._frame.opening)
        return [f"calls: {opening} {self._body()}", *self._call_rules()]

    def _body(self) -> str:
        more = f" ({self._written(self._frame.separator)} call)*" if self._several else ""
        return f"call{more} {self._written(self._frame.closing)}"

    def _call_rules(self) -> list[str]:
        frame = self._frame
        ways = [
            f"{self._written(frame.begin_of(tool.function.name))} args_{i} "
            f"{self._written(frame.end)}"
            for i, tool in enumerate(self._tools)
        ]
        return [f"call: {' | '.join(ways)}", *self._arguments()]

    def _arguments(self) -> list[str]:
        return [f"args_{i}: {_json_rule(self._schema(tool))}" for i, tool in enumerate(self._tools)]

    def _schema(self, tool: Tool) -> dict[str, Any]:
        loose = self._loose and not tool.function.strict
        return {"type": "object"} if loose else _closed(tool.function.arguments_schema)

    def _written(self, text: str) -> str:
        return self._literal(self._text.split_tokens(text))

    @staticmethod
    def _literal(pieces: Sequence[str | int]) -> str:
        return " ".join(dumps(p) if isinstance(p, str) else f"<[{p}]>" for p in pieces)


def _as_rule(output: Grammar) -> str | None:
    """A grammar as the body of a Lark rule; None if it cannot be one."""
    kind, source = output.kind, output.source
    if kind is GrammarKind.JSON_OBJECT:
        return _json_rule({"type": "object"})
    if kind is GrammarKind.JSON_SCHEMA:
        schema = json.loads(source)
        return _json_rule(schema if isinstance(schema, dict) else {})
    if kind is GrammarKind.REGEX:
        return "/" + source.replace("/", r"\/").replace("\n", r"\n") + "/"
    if kind is GrammarKind.CHOICE:
        return " | ".join(dumps(text) for text in json.loads(source))
    return None


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The same without properties that the schema does not name, where it is a plain object: what
    follows this follows the schema, too, and functions take what they declare.
    """
    plain = schema.keys() <= _PLAIN_OBJECT and "properties" in schema
    return {**schema, "additionalProperties": False} if plain else schema


def _json_rule(schema: dict[str, Any]) -> str:
    return "%json " + dumps({**schema, "x-guidance": _COMPACT})


def _list_schema(demand: CallDemand) -> dict[str, Any]:
    tools = demand.callable
    schemas = {
        f"tool_{i}": _moved(_closed(t.function.arguments_schema), f"tool_{i}")
        for i, t in enumerate(tools)
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
