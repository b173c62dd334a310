"""Calls written as JSON: `{"name": ..., "arguments": {...}}`, one, several or a list of them,
behind a marker or bare.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from baton.gateway.parsers.json_stream import stream_arguments
from baton.gateway.parsers.json_text import Outline, loads, read_json
from baton.gateway.parsers.machine import ContentAndCalls
from baton.gateway.parsers.output import Output
from baton.gateway.parsers.reader import MalformedError, Reader, Wait
from baton.gateway.parsers.schema import ToolSchemas, coerce

NAME_KEYS = ("name", "tool_name")
ARGUMENT_KEYS = ("arguments", "parameters", "args")
# How a bare call must begin, so that braces in prose and code are not held back.
_BARE = re.compile(
    r'(\[\s*)?\{\s*"(name|tool_name|arguments|parameters|args|function|type|id)"\s*:'
)
_NOT_BARE = re.compile(r'\[\s*+[^\s{]|(?:\[\s*+)?+\{\s*+[^\s"]')
_BARE_LOOK_CHARS = 64
# The usual order, in which the name is known before the arguments come.
_HEAD = re.compile(
    r'\{\s*"(?:name|tool_name)"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*'
    r'"(?:arguments|parameters|args)"\s*:\s*(?=\{)'
)
_HEAD_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonCalls:
    """`start` JSON `end`, in content. An empty `ends` means that the JSON ends itself.

    `bare`: brackets that begin a call without a marker. `keyed`: items are `{name: arguments}`.
    `lists`: a list of calls counts. `complete`: a call cut off by the end of the text is closed,
    else it is content. `no_arguments`: they may be missing. `coerced`: strings are typed by the
    tool's schema. `between`: separators after which another value may follow. `ignored`: dropped
    from content.
    """

    starts: tuple[str, ...]
    ends: tuple[str, ...] = ()
    bare: str = ""
    keyed: bool = False
    complete: bool = False
    no_arguments: bool = False
    coerced: bool = False
    lists: bool = True
    between: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.starts, *self.ends, *self.ignored)

    def run(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        def read(start: str) -> Wait[None]:
            if start in self.bare:
                yield from _look_bare(reader)
            else:
                reader.take(len(start))
            yield from self._values(reader, out, tools)

        ignored = (*self.ignored, *self.ends)
        loop = ContentAndCalls(starts=(*self.starts, *self.bare), ignored=ignored)
        yield from loop.run(reader, out, read)

    def _values(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        while True:
            yield from self._value(reader, out, tools)
            reader.mark()
            if not self.ends and not self.between:
                return
            yield from reader.skip_space()
            if (yield from reader.accept(*self.ends)):
                reader.mark()
                return
            if not self.between or not (yield from reader.accept(*self.between)):
                reader.put_back()
                return

    def _value(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        yield from reader.skip_space()
        if self.lists and (yield from reader.accept("[")):
            yield from self._items(reader, out, tools)
        else:
            yield from self._one(reader, out, tools)

    def _one(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        if not (self.keyed or self.coerced) and (yield from stream_call(reader, out)):
            return
        value = yield from read_json(reader, complete=self.complete)
        self._emit(value, out, tools)

    def _items(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        while True:
            yield from reader.skip_space()
            yield from self._one(reader, out, tools)
            reader.mark()
            yield from reader.skip_space()
            if not (yield from reader.accept(",")):
                yield from reader.accept("]")
                return

    def _emit(self, value: Any, out: Output, tools: ToolSchemas) -> None:
        for name, arguments in self._calls_of(value):
            if self.coerced:
                properties = tools.properties(name)
                arguments = {k: coerce(v, properties.get(k)) for k, v in arguments.items()}
            out.call(name, arguments)

    def _calls_of(self, value: Any) -> list[tuple[str, dict[str, Any]]]:
        if not isinstance(value, dict):
            raise MalformedError
        if self.keyed:
            if not value or not all(isinstance(v, dict) for v in value.values()):
                raise MalformedError
            return list(value.items())
        return [call_of(value, no_arguments=self.no_arguments)]


def call_of(value: dict[str, Any], *, no_arguments: bool = False) -> tuple[str, dict[str, Any]]:
    """Name and arguments of one call object. Raises MalformedError if it is none."""
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    elif isinstance(inner, str) and "name" not in value:
        value = {**value, "name": inner}
    name = next((value[key] for key in NAME_KEYS if key in value), None)
    if not isinstance(name, str) or not name:
        raise MalformedError
    arguments = next((value[key] for key in ARGUMENT_KEYS if key in value), None)
    if isinstance(arguments, str):
        arguments = loads(arguments) if arguments.strip() else {}
    if arguments is None and no_arguments:
        arguments = {}
    if not isinstance(arguments, dict):
        raise MalformedError
    return name, arguments


def stream_call(reader: Reader, out: Output) -> Wait[bool]:
    """Says the call object that comes next while it is written, if it is a long one whose name
    comes first, and consumes it; False, with nothing consumed, if it is not.
    """
    while (head := _HEAD.match(reader.text, 0, _HEAD_CHARS)) is None:
        if len(reader.text) >= _HEAD_CHARS or not (yield from reader.more()):
            return False
    if not (yield from stream_arguments(reader, out, loads(head[1]), at=head.end())):
        return False
    yield from _rest_of_object(reader)
    return True


def _rest_of_object(reader: Reader) -> Wait[None]:
    """What follows the arguments in their object is dropped, up to its end."""
    outline = Outline("{")
    try:
        while (end := outline.end_in(reader.text)) is None:
            if not (yield from reader.more()):
                return
        reader.take(end)
    except MalformedError:
        return


def _look_bare(reader: Reader) -> Wait[None]:
    """Raises MalformedError as soon as the text cannot begin a bare call."""
    while not _BARE.match(reader.text):
        if _NOT_BARE.match(reader.text) or len(reader.text) > _BARE_LOOK_CHARS:
            raise MalformedError
        if not (yield from reader.more()):
            raise MalformedError
