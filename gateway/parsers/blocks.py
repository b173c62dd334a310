"""Answers made of typed blocks between tokens: Cohere's, Inkling's, Kimi K3's."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from baton.gateway.parsers.json_calls import call_of
from baton.gateway.parsers.json_text import read_json
from baton.gateway.parsers.output import Output
from baton.gateway.parsers.reader import MalformedError, Reader, Wait, stops
from baton.gateway.parsers.schema import ToolSchemas, convert
from baton.gateway.parsers.xml_calls import attributes_of

BlockKind = Literal["reasoning", "content", "calls", "skip"]

_NAME = re.compile(r"[\w.-]*")
_MAX_NAME_CHARS = 128
_CITATION_START = ("<co>", "</co: ", "</co:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """(`open` text `end`)*; what is in no block is content.

    `kinds` says what an opening token opens: a "skip" block is a name that the next one follows, a
    "calls" block holds JSON calls. `cited`: `<co>` marks are taken out. `begins`: what comes before
    the first token. `raw_calls`: blocks of calls stay text. `named`: where the prompt ended with a
    "skip" token, the answer may begin with the name of a "calls" block, which is dropped.
    """

    kinds: tuple[tuple[str, BlockKind], ...]
    ends: tuple[str, ...]
    cited: bool = False
    begins: BlockKind = "content"
    raw_calls: bool = False
    named: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.openings, *self.ends)

    @property
    def openings(self) -> tuple[str, ...]:
        """What a prompt may end with, so that the answer begins in that block."""
        return tuple(opening for opening, _ in self.kinds)

    def run(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        kinds = dict(self.kinds)
        kind: BlockKind = self.begins
        in_block = False
        if self.named and not self.raw_calls:
            yield from self._leading_name(reader)
        while True:
            stop = yield from self._text(reader, self._emitter(out, kind))
            if stop is None:
                return
            if stop in self.ends:
                reader.take(len(stop))
                kind, in_block = "content", False
                continue
            quoting = kind if in_block else None
            kind = kinds[stop]
            in_block = kind in ("content", "reasoning")
            if kind == "calls":
                yield from self._calls(reader, out, stop)
                kind = "content"
            elif kind == "skip":
                emit = self._emitter(out, quoting or "content")
                reader.take(len(stop))
                if not (yield from self._skip(reader, emit, stop if quoting else "")):
                    kind, in_block = quoting or "content", quoting is not None
                else:
                    kind = "content"
            else:
                reader.take(len(stop))

    def _leading_name(self, reader: Reader) -> Wait[None]:
        calls = tuple(opening for opening, kind in self.kinds if kind == "calls")
        while True:
            word = _NAME.match(reader.text)
            rest = reader.text[word.end() if word else 0 :]
            if word and rest.startswith(calls):
                reader.take(word.end())
                return
            if rest and not any(c.startswith(rest) for c in calls):
                return
            if len(reader.text) > _MAX_NAME_CHARS or not (yield from reader.more()):
                return

    def _skip(self, reader: Reader, emit: Callable[[str], None], quoted: str) -> Wait[bool]:
        """A name before the next block is dropped: True then. Any other text is the block's that it
        is in, and if that is still open, so is the token, `quoted` there.
        """
        hit = yield from reader.find(stops(*self.markers))
        text = reader.take(hit[0] if hit else len(reader.text))
        if hit is None or hit[1] in self.ends or any(c.isspace() for c in text):
            emit(quoted + text)
            return False
        return True

    def _emitter(self, out: Output, kind: BlockKind) -> Callable[[str], None]:
        return out.reasoning if kind == "reasoning" else out.content

    def _text(self, reader: Reader, emit: Callable[[str], None]) -> Wait[str | None]:
        citations = _CITATION_START if self.cited else ()
        found = stops() if reader.weary else stops(*self.markers, *citations)
        while True:
            stop = yield from reader.pass_until(found, emit)
            if stop is None or stop not in citations:
                return stop
            reader.take(len(stop))
            if stop != "<co>":
                yield from reader.until(stops(">"))

    def _calls(self, reader: Reader, out: Output, opening: str) -> Wait[None]:
        if self.raw_calls:
            out.content(reader.take(len(opening)))
            stop = yield from reader.pass_until(stops(*self.ends), out.content)
            out.content(reader.take(len(stop or "")))
            return
        reader.mark()
        try:
            reader.take(len(opening))
            yield from reader.skip_space()
            if (yield from reader.accept(*self.ends)):
                return
            value = yield from read_json(reader)
            values = value if isinstance(value, list) else [value]
            if not all(isinstance(v, dict) for v in values):
                raise MalformedError
            for name, arguments in [call_of(v, no_arguments=True) for v in values]:
                out.call(name, arguments)
        except MalformedError:
            reader.put_back()
            out.content(reader.take(len(opening)))
        finally:
            reader.unmark()


_OPEN, _CLOSE, _SEP = "<|open|>", "<|close|>", "<|sep|>"
_WORD = re.compile(r"\s*([\w.-]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Xtml:
    """Kimi K3: `<|open|>think<|sep|>`text`<|close|>think<|sep|>`, the same with `response`, and
    `tools` with `call tool="f"` and `argument key="k" type="t"` inside.
    """

    begins_thinking: bool = False
    raw_calls: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return (_OPEN, _CLOSE, _SEP)

    @property
    def openings(self) -> tuple[str, ...]:
        """What a prompt may end with, so that the answer begins in that block."""
        return tuple(f"{_OPEN}{kind}{_SEP}" for kind in ("think", "response", "tools"))

    def run(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        emit = out.reasoning if self.begins_thinking else out.content
        while True:
            found = stops() if reader.weary else stops(_OPEN, _CLOSE)
            stop = yield from reader.pass_until(found, emit)
            if stop is None:
                return
            reader.mark()
            try:
                reader.take(len(stop))
                head, sep = yield from reader.until(stops(_SEP))
                word = _WORD.match(head)
                kind = word[1] if word else ""
                if not sep:
                    return
                if kind == "tools" and stop == _OPEN and self.raw_calls:
                    out.content(stop + head + sep)
                    yield from reader.pass_until(stops(), out.content)
                    return
                if kind == "call" and stop == _OPEN:
                    yield from self._call(reader, out, tools, head)
            except MalformedError:
                reader.put_back()
                emit(reader.take(len(stop)))
                continue
            reader.unmark()
            emit = out.reasoning if kind == "think" and stop == _OPEN else out.content

    def _call(self, reader: Reader, out: Output, tools: ToolSchemas, head: str) -> Wait[None]:
        name = html.unescape(attributes_of(head).get("tool", ""))
        arguments: dict[str, Any] = {}
        while True:
            hit = yield from reader.find(stops(_OPEN, _CLOSE))
            if hit is None or not name:
                raise MalformedError
            reader.take(hit[0] + len(hit[1]))
            inside, sep = yield from reader.until(stops(_SEP))
            if not sep:
                raise MalformedError
            if hit[1] == _CLOSE:
                break
            attributes = attributes_of(inside)
            text, _ = yield from reader.until(stops(_CLOSE))
            yield from reader.until(stops(_SEP))
            key = html.unescape(attributes.get("key", ""))
            kind = attributes.get("type", "string")
            arguments[key] = convert(text, {"type": kind})
        out.call(name, arguments)
