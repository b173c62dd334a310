"""Answers made of addressed messages: OpenAI's Harmony and its relatives."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from baton.gateway.parsers.json_text import loads
from baton.gateway.parsers.output import Output
from baton.gateway.parsers.reader import MalformedError, Reader, Wait, stops
from baton.gateway.parsers.schema import ToolSchemas, convert

Kind = Literal["reasoning", "content", "call", "drop"]


class Route(NamedTuple):
    """Where a message belongs; `name` is the tool a call is for."""

    kind: Kind
    name: str = ""


RouteOf = Callable[[str], Route]
# The calls in a message to a tool. Raises MalformedError.
DecodeMessage = Callable[[str, str, ToolSchemas], list[tuple[str, Any]]]

_TO = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_MAX_BLANK_CHARS = 4096
# No tag has a tag in it: so none is looked for beyond the next one.
_RFL = re.compile(r'<rfl:parameter\s++name="([^"]*+)"[^<>]*+>')
_INVOKE = re.compile(r'<atem:invoke\s++name="([^"]*+)"\s*+>')
_PARAMETER = re.compile(r'<atem:parameter\s++name="([^"]*+)"[^<>]*+>')


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """(header `message` body `end`)*; a header says who a body is for.

    Text before any header is content. `raw_calls`: messages to tools stay text, for a tool parser
    that reads them. `joiner` stands between two messages of one kind.
    """

    starts: tuple[str, ...]
    message: str
    ends: tuple[str, ...]
    route: RouteOf
    decode: DecodeMessage
    joiner: str = ""
    others: tuple[str, ...] = ()
    raw_calls: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.starts, self.message, *self.ends, *self.others)

    def run(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        said: dict[Kind, bool] = {}
        if (yield from self._begins_with_header(reader)):
            yield from self._message(reader, out, tools, said)
        found = stops(*self.starts, self.message, *self.ends)
        while True:
            stop = yield from reader.pass_until(found, out.content)
            if stop is None:
                return
            if stop in self.ends:
                reader.take(len(stop))
                continue
            yield from self._message(reader, out, tools, said)

    def _begins_with_header(self, reader: Reader) -> Wait[bool]:
        """A generation prompt may end inside a header: `to=...` comes first then."""
        while True:
            rest = reader.text.lstrip()
            if len(reader.text) - len(rest) > _MAX_BLANK_CHARS:
                return False
            if len(rest) >= len("to=") or not (yield from reader.more()):
                return rest.startswith("to=")

    def _message(
        self, reader: Reader, out: Output, tools: ToolSchemas, said: dict[Kind, bool]
    ) -> Wait[None]:
        reader.mark()
        try:
            header, stop = yield from reader.until(stops(self.message, *self.ends))
        except MalformedError:
            stop, header = " ", ""
        if stop != self.message:
            if stop:
                reader.put_back()
                out.content(reader.take(len(header) + len(stop)) or reader.take(1))
            return
        route = self.route(header)
        if route.kind != "call" or self.raw_calls:
            reader.unmark()
        if route.kind == "call" and self.raw_calls:
            out.content(header + stop)
            yield from self._body(reader, out.content, keep_end=True)
        elif route.kind == "call":
            yield from self._call(reader, out, tools, route.name)
        else:
            emit = self._emitter(out, route.kind, said)
            yield from self._body(reader, emit, keep_end=False)
        reader.unmark()

    def _emitter(self, out: Output, kind: Kind, said: dict[Kind, bool]) -> Callable[[str], None]:
        if kind == "drop":
            return lambda text: None
        first = True

        def emit(text: str) -> None:
            nonlocal first
            if first and self.joiner and said.get(kind):
                text = self.joiner + text
            first = False
            said[kind] = True
            (out.reasoning if kind == "reasoning" else out.content)(text)

        return emit

    def _body(self, reader: Reader, emit: Callable[[str], None], *, keep_end: bool) -> Wait[None]:
        stop = yield from reader.pass_until(stops(*self.ends, *self.starts), emit)
        if stop in self.ends:
            end = reader.take(len(stop or ""))
            if keep_end:
                emit(end)

    def _call(self, reader: Reader, out: Output, tools: ToolSchemas, name: str) -> Wait[None]:
        try:
            hit = yield from reader.find(stops(*self.ends, *self.starts))
            body = reader.take(hit[0] if hit else len(reader.text))
            if hit and hit[1] in self.ends:
                reader.take(len(hit[1]))
            for called, arguments in self.decode(name, body, tools):
                out.call(called, arguments)
        except MalformedError:
            reader.put_back()
            yield from reader.until(stops(self.message))
            yield from reader.pass_until(stops(*self.ends, *self.starts), out.content)


def harmony_route(header: str) -> Route:
    """`<|start|>assistant to=functions.x<|channel|>commentary <|constrain|>json`: x is called."""
    channel = _CHANNEL.search(header)
    to = _TO.search(header)
    if to:
        name = to[1].removeprefix("functions.")
        own = to[1] in ("assistant", "browser", "python", "user", "container")
        return Route("drop") if own else Route("call", name)
    if channel and channel[1] == "analysis":
        return Route("reasoning")
    return Route("content")


def harmony_decode(name: str, body: str, tools: ToolSchemas) -> list[tuple[str, Any]]:
    """The body is the arguments, as JSON; an empty one is no arguments."""
    if not body.strip():
        return [(name, {})]
    value = loads(body.strip())
    if not isinstance(value, dict):
        raise MalformedError
    return [(name, value)]


def beam_decode(name: str, body: str, tools: ToolSchemas) -> list[tuple[str, Any]]:
    """The body is `<rfl:parameter name="key">value</rfl:parameter>`s, or JSON."""
    if body.lstrip()[:1] == "{":
        return harmony_decode(name, body, tools)
    inside = _elements(body, _RFL, "</rfl:parameter>")
    pairs = [(key, text.removeprefix("\n").removesuffix("\n")) for key, text in inside]
    if body.strip() and not pairs:
        raise MalformedError
    arguments = {k: convert(v, tools.parameter(name, k), untyped="json") for k, v in pairs}
    return [(name, arguments)]


def _elements(
    text: str, start: re.Pattern[str], end: str, *, open_ended: bool = False
) -> Iterator[tuple[str, str]]:
    """The name in each start tag, and what stands up to its end tag, or for the last one, if
    `open_ended`, to the end of the text.
    """
    at = 0
    while (tag := start.search(text, at)) is not None:
        at = text.find(end, tag.end())
        if at < 0:
            if open_ended:
                yield tag[1], text[tag.end() :].removesuffix("\n")
            return
        yield tag[1], text[tag.end() : at]
        at += len(end)


def muse_route(*, unaddressed: Kind) -> RouteOf:
    """`to=self` is a thought, `to=user` and `to=commentary` are content, other names are tools."""

    def route(header: str) -> Route:
        to = _TO.search(header)
        if to is None:
            return Route(unaddressed)
        kinds: dict[str, Kind] = {
            "self": "reasoning", "user": "content", "commentary": "content", "developer": "drop",
        }  # fmt: skip
        kind = kinds.get(to[1], "call")
        return Route(kind, to[1] if kind == "call" else "")

    return route


def muse_decode(*, schema_first: bool) -> DecodeMessage:
    """`<atem:invoke name="f"><atem:parameter name="k">v</atem:parameter></atem:invoke>`s."""

    def decode(name: str, body: str, tools: ToolSchemas) -> list[tuple[str, Any]]:
        calls = list(_muse_calls(body, tools, schema_first))
        if not calls:
            raise MalformedError
        return calls

    return decode


def _muse_calls(
    body: str, tools: ToolSchemas, schema_first: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, inside in _elements(body, _INVOKE, "</atem:invoke>", open_ended=True):
        if not tools.has(name):
            head, _, tail = name.rpartition(".")
            if head and head == tail and tools.has(tail):
                name = tail
        arguments = {}
        for key, text in _elements(inside, _PARAMETER, "</atem:parameter>", open_ended=True):
            schema = tools.parameter(name, key) if schema_first else None
            arguments[key] = convert(text, schema, untyped="json")
        yield name, arguments
