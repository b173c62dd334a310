"""JSON as models write it: found in running text, read leniently, completed when it was cut."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from baton.gateway.parsers.reader import CutOffError, MalformedError, Reader, Wait

MAX_DEPTH = 128
_STRUCTURE = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'["\\]')
_CLOSERS = {"{": "}", "[": "]"}
# The longest key or value without quotes that is dropped where a text is cut off after it.
_DANGLING_CHARS = 1024
# Halves of characters, which a model may write as escapes and UTF-8 cannot carry.
_HALVES = re.compile("[\ud800-\udfff]")


def dumps(value: Any) -> str:
    """Compact enough and readable: what goes into `arguments`; halves of characters escaped."""
    text = json.dumps(value, ensure_ascii=False)
    if text.isascii():
        return text
    return _HALVES.sub(lambda half: f"\\u{ord(half.group()):04x}", text)


def whole_characters(text: str) -> str:
    """The text as UTF-8 can carry it."""
    return text if text.isascii() else _HALVES.sub("\ufffd", text)


class Outline:
    """Follows brackets and strings of one JSON object or array through text that grows; `position`
    is how far it has come.
    """

    __slots__ = ("_open", "in_string", "position")

    def __init__(self, open_with: str = "") -> None:
        self._open: list[str] = [_CLOSERS[char] for char in open_with]
        self.position = 0
        self.in_string = False

    def end_in(self, text: str) -> int | None:
        """Where the value that begins `text` ends (exclusive); None if it goes on. Call again with
        the longer text. Raises MalformedError on brackets that do not match.
        """
        while True:
            pattern = _STRING_END if self.in_string else _STRUCTURE
            match = pattern.search(text, self.position)
            if match is None:
                self.position = len(text)
                return None
            found = match.group()
            if found == "\\":
                if match.end() >= len(text):
                    self.position = match.start()
                    return None
                self.position = match.end() + 1
                continue
            self.position = match.end()
            if found == '"':
                self.in_string = not self.in_string
            elif self._bracket(found):
                return self.position

    def _bracket(self, found: str) -> bool:
        if found in _CLOSERS:
            self._open.append(_CLOSERS[found])
            if len(self._open) > MAX_DEPTH:
                raise MalformedError
            return False
        if not self._open or self._open.pop() != found:
            raise MalformedError
        return not self._open

    def closing(self) -> str:
        """What would close everything that is open."""
        return ('"' if self.in_string else "") + "".join(reversed(self._open))


def read_json(reader: Reader, *, complete: bool = False) -> Wait[Any]:
    """Consumes the JSON object or array that comes next and returns it. Cut off by the end, it is
    completed if asked for. Raises MalformedError if it is none.
    """
    while not reader.text:
        if not (yield from reader.more()):
            raise CutOffError
    if reader.text[0] not in _CLOSERS:
        raise MalformedError
    outline = Outline()
    while True:
        try:
            end = outline.end_in(reader.text)
        except MalformedError:
            # So that what was read in vain is counted where it is put back.
            reader.take(outline.position)
            raise
        if end is not None:
            reader.check_held(end)
            return loads(reader.take(end))
        if not (yield from reader.more()):
            if not complete:
                raise CutOffError
            value = loads(completed(reader.text, outline))
            reader.take(len(reader.text))
            return value


def completed(text: str, outline: Outline) -> str:
    """The text of a value cut off, closed: a dangling key or comma is dropped."""
    closing = outline.closing()
    if outline.in_string:
        text = re.sub(r"\\(u[0-9a-fA-F]{0,3})?$", "", text)
        candidate = text + closing
        if _loads_or_none(candidate) is not None:
            return candidate
        text, closing = text + '"', closing[1:]
    for pattern in (r"$", r"[,\s]+$", r"[,{]?\s*\"(?:[^\"\\]|\\.)*\"\s*:?\s*$", r",?[^,{}\[\]]*$"):
        # The end alone: these patterns would try every place of a long text.
        tail = re.sub(
            pattern,
            lambda m: "{" if m.group().startswith("{") else "",
            text[-_DANGLING_CHARS:],
        )
        cut = text[:-_DANGLING_CHARS] + tail
        if _loads_or_none(cut + closing) is not None:
            return cut + closing
    raise MalformedError


def loads(text: str) -> Any:
    """JSON, or a Python literal in its place (single quotes, True). Raises MalformedError."""
    value = _loads_or_none(text)
    if value is None and text.strip() != "null":
        raise MalformedError
    return value


def _loads_or_none(text: str) -> Any:
    try:
        return json.loads(text, strict=False, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        pass
    return literal(text)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def literal(text: str) -> Any:
    """A Python literal as JSON data; None if it is none."""
    try:
        value = ast.literal_eval(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value
