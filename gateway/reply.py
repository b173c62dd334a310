"""What an answer's text says: thoughts, content and calls, taken apart while it arrives."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from baton.gateway.dialect import Dialect
from baton.gateway.parsers.events import ArgumentsDelta, ContentDelta, Event, ReasoningDelta
from baton.gateway.parsers.events import ToolCallStart as CallStart
from baton.gateway.parsers.formats import (
    Pipeline,
    StreamParser,
    prompted,
    reads_both,
    thinking_of,
    tool_parser,
)
from baton.gateway.parsers.schema import ToolSchemas
from baton.gateway.parsers.wishes import as_wished
from baton.protos.constraints import Thought

_ID_CHARS = string.ascii_letters + string.digits


@dataclass(slots=True)
class CallDelta:
    """More of one call; `id` and `name` come once, with its first piece."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class Said:
    """What became certain of an answer with one piece of its text."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyPlan:
    """How the answers of one chat request are read.

    `tools` as in the request: without them no calls are looked for; with `calls` off, they are
    dropped. `forced_parser`: reads answers that a grammar keeps in another form than the model's
    own.
    """

    dialect: Dialect
    tools: Sequence[Mapping[str, Any]] = ()
    calls: bool = True
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    include_reasoning: bool = True
    parallel: bool = True
    thinking_budget: int | None = None
    forced_parser: Callable[[], StreamParser] | None = None

    @property
    def needed(self) -> bool:
        """Whether there is anything to read but content."""
        return bool(self.tools) or self.dialect.reasoning is not None

    def thought(self, prompt_tail: str) -> Thought | None:
        """Where an answer's thought begins and ends; None if there can be none."""
        return self.dialect.thought_of(prompt_tail, self.template_kwargs, self.thinking_budget)

    def reader(self, prompt_tail: str) -> ReplyReader:
        """For one answer to a prompt that ends like this."""
        nine = self.dialect.tool is not None and self.dialect.tool.short_ids
        make_id = _nine_chars if nine else _call_id
        parser = as_wished(self._parser(prompt_tail), self.template_kwargs, calls=self.calls)
        return ReplyReader(self, parser, make_id, self.thought(prompt_tail))

    def _parser(self, prompt_tail: str) -> StreamParser:
        tool, reasoning = self.dialect.tool, self.dialect.reasoning
        calls = None
        if self.forced_parser is not None:
            calls = self.forced_parser()
        elif self.tools and tool is not None:
            if reasoning is not None and reads_both(tool, reasoning):
                return prompted(tool.machine, prompt_tail, ToolSchemas(self.tools))
            calls = tool_parser(tool, self.tools)
        if reasoning is None:
            return calls or _Plain()
        machine = reasoning.after(prompt_tail, thinking_of(self.template_kwargs))
        thoughts = prompted(machine, prompt_tail, ToolSchemas(None))
        return Pipeline(thoughts, calls) if calls is not None else thoughts


class ReplyReader:
    """Reads one answer. Line breaks around a thought, and before the answer after it, are the
    format's and not text.
    """

    __slots__ = (
        "_begun",
        "_counter",
        "_held_breaks",
        "_make_id",
        "_parser",
        "_plan",
        "_thought_begun",
        "_trims",
        "num_calls",
    )

    def __init__(
        self,
        plan: ReplyPlan,
        parser: StreamParser,
        make_id: Callable[[], str],
        thought: Thought | None,
    ) -> None:
        self.num_calls = 0
        self._counter = ThoughtCounter(thought) if thought is not None else None
        self._plan = plan
        self._parser = parser
        self._make_id = make_id
        self._trims = plan.dialect.reasoning is not None
        self._begun = False
        self._thought_begun = False
        self._held_breaks = ""

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of thought so far, markers not counted."""
        return self._counter.num_tokens if self._counter is not None else 0

    def read(self, text: str, token_ids: Sequence[int], *, last: bool) -> Said:
        """What became certain with this text of these tokens; all the rest with the last ones."""
        if self._counter is not None:
            self._counter.count(token_ids)
        events = self._parser.feed(text) if text else []
        if last:
            events = [*events, *self._parser.finish()]
        said = Said()
        for event in events:
            if isinstance(event, ContentDelta):
                said.content += self._content(event.text)
            elif isinstance(event, ReasoningDelta):
                said.reasoning += self._reasoning(event.text)
            elif event.index == 0 or self._plan.parallel:
                self._call(event, said.calls)
        return said

    def _content(self, text: str) -> str:
        if self._trims and not self._begun:
            text = text.lstrip("\n")
            self._begun = bool(text)
        return text

    def _reasoning(self, text: str) -> str:
        if not self._plan.include_reasoning:
            return ""
        text = self._held_breaks + text
        if not self._thought_begun:
            text = text.lstrip("\n")
            self._thought_begun = bool(text)
        kept = text.rstrip("\n")
        self._held_breaks = text[len(kept) :]
        return kept

    def _call(self, event: CallStart | ArgumentsDelta, calls: list[CallDelta]) -> None:
        if isinstance(event, CallStart):
            self.num_calls += 1
            calls.append(CallDelta(event.index, "", event.id or self._make_id(), event.name))
        elif calls and calls[-1].index == event.index:
            calls[-1].arguments += event.json_text
        else:
            calls.append(CallDelta(event.index, event.json_text))


class ThoughtCounter:
    """Counts the tokens between the markers of thoughts."""

    __slots__ = ("_end", "_inside", "_start", "_tail", "num_tokens")

    def __init__(self, thought: Thought) -> None:
        self.num_tokens = 0
        self._start = list(thought.start_ids)
        self._end = list(thought.end_ids)
        self._inside = thought.open
        # The last tokens, in which a marker of several may have begun.
        self._tail: list[int] = []

    def count(self, token_ids: Sequence[int]) -> None:
        """The answer's next tokens."""
        for token_id in token_ids:
            marker = self._end if self._inside else self._start
            self.num_tokens += self._inside
            if not marker:
                continue
            self._tail.append(token_id)
            del self._tail[: -len(marker)]
            if self._tail == marker:
                self.num_tokens -= len(marker) if self._inside else 0
                self._inside = not self._inside
                self._tail.clear()


class _Plain:
    """All text is content."""

    def feed(self, text: str) -> list[Event]:
        return [ContentDelta(text)] if text else []

    def finish(self) -> list[Event]:
        return []


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _nine_chars() -> str:
    return "".join(secrets.choice(_ID_CHARS) for _ in range(9))
