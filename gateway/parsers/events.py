"""What a parser says about a text: events in the order of the text, and what they add up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the thought before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins. `index` counts the answer's calls from 0; `id` is what the model itself named
    it, or None.
    """

    index: int
    id: str | None
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of a call's arguments; all of them together are one JSON object, or with some formats
    the beginning of one where the end of the text cut it off.
    """

    index: int
    json_text: str


Event = ContentDelta | ReasoningDelta | ToolCallStart | ArgumentsDelta


@dataclass(slots=True)
class ToolCall:
    """One call, whole."""

    name: str
    arguments: str = ""
    id: str | None = None


@dataclass(slots=True)
class Parsed:
    """A whole answer, taken apart."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


def collect(events: Iterable[Event]) -> Parsed:
    """Adds events up."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    arguments: list[list[str]] = []
    for event in events:
        if isinstance(event, ContentDelta):
            content.append(event.text)
        elif isinstance(event, ReasoningDelta):
            reasoning.append(event.text)
        elif isinstance(event, ToolCallStart):
            calls.append(ToolCall(event.name, id=event.id))
            arguments.append([])
        else:
            arguments[event.index].append(event.json_text)
    for call, parts in zip(calls, arguments, strict=True):
        call.arguments = "".join(parts)
    return Parsed("".join(content), "".join(reasoning), calls)


def joined(events: list[Event]) -> list[Event]:
    """The same events with neighbours of one kind merged, so that a chunk makes few deltas."""
    if len(events) < 2:
        return events
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, ContentDelta) and isinstance(last, ContentDelta):
            merged[-1] = ContentDelta(last.text + event.text)
        elif isinstance(event, ReasoningDelta) and isinstance(last, ReasoningDelta):
            merged[-1] = ReasoningDelta(last.text + event.text)
        elif (
            isinstance(event, ArgumentsDelta)
            and isinstance(last, ArgumentsDelta)
            and event.index == last.index
        ):
            merged[-1] = ArgumentsDelta(event.index, last.json_text + event.json_text)
        else:
            merged.append(event)
    return merged
