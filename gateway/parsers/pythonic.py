"""Calls written as Python: `[get_weather(city='Paris', days=[1, 2])]`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from baton.gateway.parsers.json_calls import call_of
from baton.gateway.parsers.json_text import MAX_DEPTH, loads
from baton.gateway.parsers.machine import ContentAndCalls
from baton.gateway.parsers.output import Output
from baton.gateway.parsers.reader import MalformedError, Reader, Wait, stops
from baton.gateway.parsers.schema import ToolSchemas

_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_KEYWORD = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*")
_NUMBER = re.compile(r"[+-]?(?:\d[\d_]*\.?\d*(?:[eE][+-]?\d+)?|\.\d+)")
_WORDS = {"True": True, "true": True, "False": False, "false": False}
_NONE = ("None", "null", "none")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "\n": "", "b": "\b"}
# What may follow a string's closing quote when quotes inside it were not escaped.
_AFTER_ARGUMENT = re.compile(r"\s*(?:,\s*[A-Za-z_]\w*\s*=|\)\s*(?:[,\]\n]|$))")
_AFTER_ITEM = re.compile(r"\s*[,\]}:)]")
_BARE = re.compile(r"\[\s{0,64}[A-Za-z_][\w.\-]{0,255}\s{0,64}\(")
_BARE_PREFIX = re.compile(r"\[\s{0,64}(?:[A-Za-z_][\w.\-]{0,255}\s{0,64})?")


class _Source:
    """Recursive descent over one text. `lenient` forgives quotes inside quotes."""

    def __init__(self, text: str, *, lenient: bool) -> None:
        self.text = text
        self.at = 0
        self.lenient = lenient

    def space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def peek(self) -> str:
        self.space()
        return self.text[self.at : self.at + 1]

    def take(self, char: str) -> None:
        if self.peek() != char:
            raise MalformedError
        self.at += 1

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()
        return match


def calls_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The calls of a text that is nothing but a list of them, with or without its brackets.
    Raises MalformedError.
    """
    try:
        return _calls(_Source(text, lenient=False))
    except MalformedError:
        return _calls(_Source(text, lenient=True))


def _calls(source: _Source) -> list[tuple[str, dict[str, Any]]]:
    in_list = source.peek() == "["
    if in_list:
        source.at += 1
    calls = []
    while source.peek() not in ("]", ""):
        calls.append(_call(source))
        if source.peek() == ",":
            source.at += 1
    if in_list:
        source.take("]")
    if source.peek() or not calls:
        raise MalformedError
    return calls


def _call(source: _Source) -> tuple[str, dict[str, Any]]:
    source.space()
    name = source.match(_NAME)
    if name is None:
        raise MalformedError
    source.take("(")
    arguments: dict[str, Any] = {}
    while source.peek() != ")":
        key = source.match(_KEYWORD)
        if key is None:
            raise MalformedError
        arguments[key[1]] = _value(source, 0)
        if source.peek() == ",":
            source.at += 1
        elif source.peek() != ")":
            raise MalformedError
    source.take(")")
    return name.group(), arguments


def _value(source: _Source, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise MalformedError
    char = source.peek()
    if char and char in "'\"":
        return _string(source, depth)
    if char in ("[", "("):
        return _items(source, "]" if char == "[" else ")", depth)
    if char == "{":
        return _mapping(source, depth)
    number = source.match(_NUMBER)
    if number:
        return _number(number.group())
    word = source.match(_NAME)
    if word is None:
        raise MalformedError
    if word.group() in _WORDS:
        return _WORDS[word.group()]
    if word.group() in _NONE:
        return None
    raise MalformedError


def _number(text: str) -> int | float:
    text = text.replace("_", "")
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        raise MalformedError from None
    if value in (float("inf"), float("-inf")):
        raise MalformedError
    return value


def _string(source: _Source, depth: int) -> str:
    quote = source.text[source.at]
    if source.text.startswith(quote * 3, source.at):
        end = source.text.find(quote * 3, source.at + 3)
        if end < 0:
            raise MalformedError
        value = source.text[source.at + 3 : end]
        source.at = end + 3
        return value
    source.at += 1
    parts: list[str] = []
    while source.at < len(source.text):
        char = source.text[source.at]
        source.at += 1
        if char == "\\":
            parts.append(_escape(source))
        elif char == quote and _closes(source, depth):
            return "".join(parts)
        else:
            parts.append(char)
    raise MalformedError


def _closes(source: _Source, depth: int) -> bool:
    if not source.lenient:
        return True
    after = _AFTER_ITEM if depth else _AFTER_ARGUMENT
    return after.match(source.text, source.at) is not None


def _escape(source: _Source) -> str:
    char = source.text[source.at : source.at + 1]
    source.at += 1
    if char == "u":
        digits = source.text[source.at : source.at + 4]
        if re.fullmatch(r"[0-9a-fA-F]{4}", digits):
            source.at += 4
            return chr(int(digits, 16))
    return _ESCAPES.get(char, "\\" + char)


def _items(source: _Source, close: str, depth: int) -> list[Any]:
    source.at += 1
    items = []
    while source.peek() != close:
        items.append(_value(source, depth + 1))
        if source.peek() == ",":
            source.at += 1
        elif source.peek() != close:
            raise MalformedError
    source.at += 1
    return items


def _mapping(source: _Source, depth: int) -> Any:
    """A dict, or a set as a list."""
    source.at += 1
    pairs: dict[str, Any] = {}
    items: list[Any] = []
    while source.peek() != "}":
        key = _value(source, depth + 1)
        if source.peek() == ":" and not items:
            source.at += 1
            pairs[key if isinstance(key, str) else str(key)] = _value(source, depth + 1)
        else:
            items.append(key)
        if source.peek() == ",":
            source.at += 1
        elif source.peek() != "}":
            raise MalformedError
    source.at += 1
    if items and pairs:
        raise MalformedError
    return items or pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonCalls:
    """Calls between `starts` and `ends`, and where `bare`, lists of calls that stand in content."""

    starts: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    bare: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.starts, *self.ends, *self.ignored)

    def run(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        def read(start: str) -> Wait[None]:
            if start == "[" and self.bare:
                yield from self._bare(reader, out)
            else:
                yield from self._tagged(reader, out, start)

        starts = (*self.starts, *(("[",) if self.bare else ()))
        ignored = tuple(s for s in (*self.ignored, *self.ends) if s not in starts)
        yield from ContentAndCalls(starts=starts, ignored=ignored).run(reader, out, read)

    def _tagged(self, reader: Reader, out: Output, start: str) -> Wait[None]:
        reader.take(len(start))
        text, end = yield from reader.until(stops(*self.ends))
        if not text.strip() and end:
            return
        for name, arguments in _either(text.strip()):
            out.call(name, arguments)

    def _bare(self, reader: Reader, out: Output) -> Wait[None]:
        while not _BARE.match(reader.text):
            if not _BARE_PREFIX.fullmatch(reader.text) or not (yield from reader.more()):
                raise MalformedError
        text = yield from _balanced(reader)
        reader.take(len(text))
        calls = calls_of(text)
        for name, arguments in calls:
            out.call(name, arguments)


def _either(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Python calls, or the same as JSON."""
    try:
        return calls_of(text)
    except MalformedError:
        value = loads(text)
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, dict) for v in values):
        raise MalformedError
    return [call_of(v) for v in values]


def _balanced(reader: Reader) -> Wait[str]:
    """The bracketed text that comes next, quotes and escapes respected, consuming nothing."""
    depth, at, quote = 0, 0, ""
    while True:
        while at < len(reader.text):
            char = reader.text[at]
            if quote:
                if char == "\\":
                    at += 1
                elif char == quote:
                    quote = ""
            elif char in "'\"":
                quote = char
            elif char in "[({":
                depth += 1
            elif char in "])}":
                depth -= 1
            at += 1
            if depth == 0 and not quote:
                reader.check_held(at)
                return reader.text[:at]
        if not (yield from reader.more()):
            raise MalformedError
