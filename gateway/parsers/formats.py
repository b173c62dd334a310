"""What a format declares besides its machine, and how parsers are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from baton.gateway.parsers.blocks import Blocks, Xtml
from baton.gateway.parsers.events import (
    ArgumentsDelta,
    ContentDelta,
    Event,
    Parsed,
    ToolCallStart,
    collect,
    joined,
)
from baton.gateway.parsers.json_calls import JsonCalls
from baton.gateway.parsers.json_text import dumps
from baton.gateway.parsers.machine import Machine, MachineParser
from baton.gateway.parsers.pythonic import PythonCalls
from baton.gateway.parsers.reasoning import ThoughtTags
from baton.gateway.parsers.schema import ToolSchemas


class StreamParser(Protocol):
    """One answer's text in, events out, in the order of the text."""

    def feed(self, text: str) -> list[Event]:
        """What became certain with this text. Never raises for what a model wrote."""

    def finish(self) -> list[Event]:
        """The rest; nothing may be fed afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFrame:
    """How calls whose arguments are plain JSON are written, for grammars that force them.

    `begin` and `end` surround a call's arguments; in `begin`, `$name` stands for the name and
    `$quoted` for its JSON string. `separator` parts calls, if there may be `several`. `opening` and
    `closing` surround all calls. `trigger` announces a call in other text.
    """

    begin: str
    end: str
    trigger: str = ""
    separator: str = "\n"
    opening: str = ""
    closing: str = ""
    several: bool = True

    def begin_of(self, name: str) -> str:
        """What is written before the arguments of a call of this name."""
        return self.begin.replace("$quoted", dumps(name)).replace("$name", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """A format of tool calls, by all its `names`, the first being Baton's own.

    `template_marks`: strings of which each must be in a chat template that asks for this format.
    `model_types`: `model_type` of configurations whose models use it. `thinks`: names of the
    reasoning formats that this machine reads itself. `short_ids`: calls are named by nine letters
    and digits, or the template refuses them. `calls_last`: what the model says after a call is
    dropped, as vLLM does with this format.
    """

    names: tuple[str, ...]
    machine: Machine
    example: str
    models: str
    template_marks: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    thinks: tuple[str, ...] = ()
    short_ids: bool = False
    calls_last: bool = False
    frame: CallFrame | None = None

    @property
    def marked(self) -> bool:
        """Whether a marker announces every call, so that no JSON or code in an answer is one."""
        machine = self.machine
        return not (isinstance(machine, JsonCalls | PythonCalls) and machine.bare)


class Bounds(NamedTuple):
    """The markers around a thought. `before_end` goes before the end where a thought is cut short;
    `always`: every output begins with a thought, or what counts as one.
    """

    start: str
    end: str
    before_end: str = ""
    always: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat:
    """A format of thoughts, by all its `names`. `optional`: with thinking off, text is taken as it
    is; otherwise tags still count. `around`: the markers, where the machine's own do not say.
    `calls`: reads the calls in an answer of which only the thoughts are asked for; they are no
    text, and dropped, as by vLLM.
    """

    names: tuple[str, ...]
    machine: Machine
    example: str
    models: str
    template_marks: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    optional: bool = False
    around: Bounds | None = None
    calls: Machine | None = None

    @property
    def bounds(self) -> Bounds | None:
        """The markers around a thought; None where no fixed ones bound it."""
        machine = self.machine
        if self.around is not None or not isinstance(machine, ThoughtTags) or machine.prefix:
            return self.around
        end = machine.ends[0]
        return Bounds(machine.starts[0], end, "\n" if "think" in end else "")

    def opened_by(self, prompt: str) -> bool | None:
        """Whether a prompt that is known to its end opens a thought (True) or closes one (False)
        right there; None if it does neither.
        """
        machine = self.machine
        if not isinstance(machine, ThoughtTags):
            return None
        end = prompt.rstrip()
        openings = [s + label for s in machine.starts for label in ("", *machine.labels)]
        if end.endswith(tuple(opening.strip() for opening in openings)):
            return True
        return False if end.endswith(tuple(e.strip() for e in machine.ends)) else None

    def after(self, prompt: str, thinking: bool | None) -> Machine:
        """The machine for what follows a prompt that is known to its end: whoever opens a thought,
        the prompt or the model, says so.
        """
        machine = self.machine
        if not isinstance(machine, ThoughtTags):
            return machine
        opened = self.opened_by(prompt)
        if opened is None and thinking is False:
            return machine.switched(False, plain=self.optional)
        return replace(machine, inside=bool(opened))

    def for_prompt(self, prompt: str, thinking: bool | None = None) -> Machine:
        """The machine for a request whose prompt, as rendered, ends like this."""
        machine = self.machine
        if isinstance(machine, ThoughtTags):
            opened = machine.opened_by(prompt)
            if opened is not None:
                return replace(machine, inside=opened)
        return self.for_thinking(thinking)

    def for_thinking(self, thinking: bool | None) -> Machine:
        """The machine for a request that has thinking on, off, or says nothing."""
        machine = self.machine
        if thinking is None or not isinstance(machine, ThoughtTags):
            return machine
        return machine.switched(thinking, plain=self.optional)


class Pipeline:
    """Thoughts taken out first, then calls from what is left."""

    def __init__(self, reasoning: StreamParser, tools: StreamParser) -> None:
        self._reasoning = reasoning
        self._tools = tools

    def feed(self, text: str) -> list[Event]:
        return joined(self._passed(self._reasoning.feed(text)))

    def finish(self) -> list[Event]:
        return joined([*self._passed(self._reasoning.finish()), *self._tools.finish()])

    def _passed(self, events: list[Event]) -> list[Event]:
        passed: list[Event] = []
        for event in events:
            if isinstance(event, ContentDelta):
                passed += self._tools.feed(event.text)
            else:
                passed.append(event)
        return passed


class WithoutCalls:
    """Drops calls: nobody asked for them, and what a model writes all the same is no text."""

    def __init__(self, parser: StreamParser) -> None:
        self._parser = parser

    def feed(self, text: str) -> list[Event]:
        return self._kept(self._parser.feed(text))

    def finish(self) -> list[Event]:
        return self._kept(self._parser.finish())

    def _kept(self, events: list[Event]) -> list[Event]:
        return [e for e in events if not isinstance(e, ToolCallStart | ArgumentsDelta)]


def prompted(machine: Machine, prompt: str, tools: ToolSchemas) -> MachineParser:
    """A parser of what follows a prompt that is known to its end: what the prompt opened there, the
    answer begins in.
    """
    parser = MachineParser(machine, tools, keeps_blanks=not tools.known)
    if isinstance(machine, Blocks | Xtml):
        end = prompt.rstrip()
        parser.feed(next((mark for mark in machine.openings if end.endswith(mark)), ""))
    return parser


def tool_parser(form: ToolFormat, tools: Sequence[Mapping[str, Any]] | None = None) -> StreamParser:
    """A parser of one answer's calls. `tools` as in a chat request; they type untyped values."""
    return MachineParser(form.machine, ToolSchemas(tools), calls_last=form.calls_last)


def reasoning_parser(
    form: ReasoningFormat, thinking: bool | None = None, prompt: str = ""
) -> StreamParser:
    """A parser of one answer's thoughts. `prompt`: how the rendered prompt ends, if known."""
    thoughts = _thoughts(form, thinking, prompt)
    if form.calls is None:
        return thoughts
    return WithoutCalls(Pipeline(thoughts, MachineParser(form.calls, ToolSchemas(None))))


def _thoughts(form: ReasoningFormat, thinking: bool | None, prompt: str) -> StreamParser:
    machine = form.for_prompt(prompt, thinking)
    return MachineParser(machine, ToolSchemas(None), keeps_blanks=True)


def reads_both(tool_form: ToolFormat, reasoning_form: ReasoningFormat) -> bool:
    """Whether the tool format's machine reads those thoughts itself."""
    return any(name in tool_form.thinks for name in reasoning_form.names)


def answer_parser(
    tool_form: ToolFormat,
    reasoning_form: ReasoningFormat,
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: bool | None = None,
    prompt: str = "",
) -> StreamParser:
    """A parser of both."""
    calls = tool_parser(tool_form, tools)
    if reads_both(tool_form, reasoning_form):
        return calls
    return Pipeline(_thoughts(reasoning_form, thinking, prompt), calls)


def parse(parser: StreamParser, chunks: Sequence[str]) -> Parsed:
    """All of an answer at once."""
    events: list[Event] = []
    for chunk in chunks:
        events += parser.feed(chunk)
    return collect([*events, *parser.finish()])


def thinking_of(template_kwargs: Mapping[str, Any]) -> bool | None:
    """Whether a request's `chat_template_kwargs` turn thinking on or off; None if they say
    nothing.
    """
    effort = template_kwargs.get("reasoning_effort")
    if effort in ("none", "no_think"):
        return False
    for key in ("enable_thinking", "thinking"):
        if isinstance(template_kwargs.get(key), bool):
            return bool(template_kwargs[key])
    mode = template_kwargs.get("thinking_mode")
    if mode in ("enabled", "disabled"):
        return bool(mode == "enabled")
    return None if effort is None else True
