"""Calls between sentinel tokens: `call` name `separator` JSON `call_end`, often in a section."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from baton.gateway.parsers.json_calls import ARGUMENT_KEYS, NAME_KEYS, call_of, stream_call
from baton.gateway.parsers.json_stream import stream_arguments
from baton.gateway.parsers.json_text import Outline, read_json
from baton.gateway.parsers.machine import ContentAndCalls
from baton.gateway.parsers.output import Output
from baton.gateway.parsers.reader import CutOffError, MalformedError, Reader, Stops, Wait, stops
from baton.gateway.parsers.schema import ToolSchemas

_NUMBERED = re.compile(r"^(?:functions?\.)?(?P<name>.*?)(?::(?P<number>\d+))?$", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionCalls:
    """`section` (`call` name `separator` JSON `call_end`)* `section_end`, in content.

    `kinds`: what may stand between `call` and the name. `fences`: wrapping of the JSON. `numbered`:
    the name is `functions.NAME:N`, which is the call's id too. `name_last`: nothing separates the
    name from the JSON. `bare`: calls count outside a section too. `fused`: after `call`, JSON with
    name and arguments may stand instead. `cut`: what becomes of a call that the text's end cuts
    off; as a "call", its arguments are what was written of them.
    """

    sections: tuple[str, ...] = ()
    section_ends: tuple[str, ...] = ()
    calls: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    separators: tuple[str, ...]
    fences: tuple[str, ...] = ()
    call_ends: tuple[str, ...]
    numbered: bool = False
    fused: bool = False
    bare: bool = True
    cut: Literal["content", "call"] = "content"
    no_arguments: bool = True
    drops_partial: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        return (
            *self.sections, *self.section_ends, *self.calls, *self.kinds, *self.separators,
            *self.call_ends, *self.fences, *self.ignored,
        )  # fmt: skip

    def run(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        def read(start: str) -> Wait[None]:
            if start in self.sections:
                yield from self._section(reader, out, tools)
            else:
                yield from self._call(reader, out, tools)

        reader.drops_partial = self.drops_partial
        starts = (*self.sections, *(self.calls if self.bare or not self.sections else ()))
        ignored = (*self.ignored, *self.section_ends)
        drop_cut = self.cut != "content"
        loop = ContentAndCalls(starts=starts, ignored=ignored, drop_cut=drop_cut)
        yield from loop.run(reader, out, read)

    def _section(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        yield from reader.accept(*self.sections)
        found = stops(*self.calls, *self.section_ends)
        while True:
            hit = yield from reader.find(found)
            if hit is None:
                if reader.text.strip():
                    raise CutOffError
                reader.take(len(reader.text))
                return
            noise = reader.take(hit[0])
            if hit[1] in self.section_ends:
                reader.take(len(hit[1]))
                if noise.strip():
                    out.content(noise)
                reader.mark()
                return
            yield from self._call(reader, out, tools)
            reader.mark()

    def _call(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        yield from reader.accept(*self.calls)
        yield from reader.accept(*self.kinds) if self.kinds else _nothing()
        if self.fused:
            yield from reader.skip_space()
            if reader.text[:1] in ("{", "["):
                value = yield from read_json(reader)
                out.call(*call_of(value))
                return
        ends = (*self.separators, *self.call_ends, *self.calls, *self.section_ends)
        hit = yield from reader.find(stops(*ends))
        if hit is None:
            self._cut_name(reader, out, stops(*ends, *self.kinds))
            return
        raw_name = reader.take(hit[0]).strip()
        arguments: Any = {}
        if hit[1] in self.separators:
            reader.take(len(hit[1]))
            name, call_id = self._named(raw_name)
            yield from self._unfenced(reader)
            if name and not name.isdigit():
                closes = self.cut == "content"
                if (yield from stream_arguments(reader, out, name, call_id, closes=closes)):
                    yield from self._end(reader)
                    return
                if not closes and (yield from self._is_cut(reader, out, name, call_id)):
                    return
            arguments = yield from self._json(reader)
        elif not self.no_arguments:
            raise MalformedError
        name, call_id = self._named(raw_name)
        if self.numbered and name.isdigit():
            name = tools.only_tool_with(arguments) or ""
        if not name or not isinstance(arguments, dict):
            raise MalformedError
        out.call(name, arguments, call_id)
        reader.mark()
        yield from self._end(reader)

    def _cut_name(self, reader: Reader, out: Output, found: Stops) -> None:
        """The text ended in a call's name."""
        name = reader.text[: found.held_from(reader.text)].strip()
        if self.cut != "call" or not name:
            raise CutOffError
        reader.take(len(reader.text))
        out.call(name, {})

    def _unfenced(self, reader: Reader) -> Wait[None]:
        yield from reader.skip_space()
        if self.fences:
            yield from reader.accept(*self.fences)
            yield from reader.skip_space()

    def _json(self, reader: Reader) -> Wait[Any]:
        if self.no_arguments and (yield from _at(reader, self.call_ends)):
            return {}
        if self.cut == "call" and reader.ended and _is_part(reader.text, self.fences):
            reader.take(len(reader.text))
            return {}
        return (yield from read_json(reader))

    def _is_cut(self, reader: Reader, out: Output, name: str, call_id: str | None) -> Wait[bool]:
        """Whether the text ends inside the arguments: they are said as far as they were written,
        for no client should take them for whole.
        """
        outline = Outline()
        while reader.text[:1] == "{" and outline.end_in(reader.text) is None:
            if not (yield from reader.more()):
                out.begin_call(name, call_id)
                out.arguments(reader.take(len(reader.text)))
                return True
        return False

    def _end(self, reader: Reader) -> Wait[None]:
        """Whatever stands between the JSON and the call's end is dropped, if it is short."""
        yield from reader.skip_space()
        if self.fences:
            yield from reader.accept("```")
            yield from reader.skip_space()
        ended = yield from reader.accept(*self.call_ends)
        cut = not ended and self.cut == "call" and reader.ended
        if cut and _is_part(reader.text, self.call_ends):
            reader.take(len(reader.text))

    def _named(self, text: str) -> tuple[str, str | None]:
        if not self.numbered:
            return text, None
        match = _NUMBERED.match(text)
        if match is None:
            raise MalformedError
        return match["name"], text


def _is_part(text: str, strings: tuple[str, ...]) -> bool:
    """Whether the text is empty or what an end left of one of these."""
    return any(s.startswith(text) for s in strings)


def _nothing() -> Wait[str]:
    return ""
    yield


def _at(reader: Reader, strings: tuple[str, ...]) -> Wait[bool]:
    while not reader.ended and any(s.startswith(reader.text) and s != reader.text for s in strings):
        yield
    return any(reader.text.startswith(s) for s in strings)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedJson:
    """Mistral's: `start` and then name and JSON (`name{...}`, `name[ARGS]{...}`,
    `name[CALL_ID]id[ARGS]{...}`), or JSON calls.
    """

    start: str = "[TOOL_CALLS]"
    separator: str = "[ARGS]"
    id_start: str = "[CALL_ID]"

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.start, self.separator, self.id_start)

    def run(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        def read(start: str) -> Wait[None]:
            reader.take(len(start))
            yield from reader.skip_space()
            while (yield from reader.accept(self.start)):
                yield from reader.skip_space()
            while not reader.text and (yield from reader.more()):
                pass
            if reader.text[:1] in ("[", "{"):
                yield from self._json(reader, out)
            else:
                yield from self._named(reader, out)

        loop = ContentAndCalls(starts=(self.start,), drop_refused=True)
        yield from loop.run(reader, out, read)

    def _json(self, reader: Reader, out: Output) -> Wait[None]:
        in_list = yield from reader.accept("[")
        while True:
            yield from reader.skip_space()
            if not (yield from stream_call(reader, out)):
                value = yield from read_json(reader, complete=True)
                if not isinstance(value, dict):
                    raise MalformedError
                if not any(k in value for k in (*NAME_KEYS, *ARGUMENT_KEYS)):
                    raise MalformedError
                out.call(*call_of(value))
            reader.mark()
            yield from reader.skip_space()
            if not (yield from reader.accept(",")):
                if in_list:
                    yield from reader.accept("]")
                return

    def _named(self, reader: Reader, out: Output) -> Wait[None]:
        hit = yield from reader.find(stops("{", self.separator, self.id_start, self.start))
        if hit is None or hit[1] == self.start:
            raise MalformedError
        name = reader.take(hit[0]).strip()
        call_id = None
        if hit[1] == self.id_start:
            reader.take(len(self.id_start))
            call_id, _ = yield from reader.until(stops(self.separator))
        elif hit[1] == self.separator:
            reader.take(len(self.separator))
        yield from reader.skip_space()
        if not name or any(c.isspace() for c in name):
            raise MalformedError
        if (yield from stream_arguments(reader, out, name, call_id)):
            return
        arguments = yield from read_json(reader, complete=True)
        if not isinstance(arguments, dict):
            raise MalformedError
        out.call(name, arguments, call_id)
