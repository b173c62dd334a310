"""Calls written as tags: `<function=name><parameter=key>value</parameter></function>` and its
relatives, with attributes (`<invoke name="...">`) or with keys and values in tags of their own
(`<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`).
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any, Literal

from baton.gateway.parsers.arguments import Arguments
from baton.gateway.parsers.json_calls import call_of
from baton.gateway.parsers.json_stream import COMMIT_CHARS
from baton.gateway.parsers.json_text import read_json
from baton.gateway.parsers.machine import ContentAndCalls
from baton.gateway.parsers.output import Output
from baton.gateway.parsers.reader import CutOffError, MalformedError, Reader, Stops, Wait, stops
from baton.gateway.parsers.schema import ToolSchemas, coerce, convert, types_of

_ATTRIBUTE = re.compile(r"""(?<![\w:-])([\w:-]++)\s*+=\s*+("[^"]*"|'[^']*'|[^\s"'/>]++)""")
_CDATA = re.compile(r"\s*<!\[CDATA\[(.*?)\]\]>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class XmlCalls:
    """`section` (`call` name `name_ends` (`param` key `key_end` [`value_start`] value `param_end`)*
    `call_end`)* `section_end`, in content.

    Where things stand. `attributes`: name and key are in name="..." attributes of their tags.
    `bare`: calls count outside a section too. `json_body`: arguments may be one JSON object;
    `json_call`: JSON with the name; `json_section`: whole calls in a section, too. `between`:
    dropped around calls in a section. `type_tags`: around a value's type.

    What they mean. `untyped`: how a value without a schema is read. `wrappers`: parameters which,
    unknown to the tool and holding its arguments, stand for all of them. `trim`: one line break at
    each end of a value is not part of it. `next_param_ends`: so does a value end that lacks its
    end tag. `cdata`: values may be CDATA and have entities.

    What is no call. `unknown`: a call of a tool that the request does not have. `cut`: a call that
    the end of the text cuts off. `special`: the section's markers are no text.
    """

    sections: tuple[str, ...] = ()
    section_ends: tuple[str, ...] = ()
    calls: tuple[str, ...] = ("<function=",)
    name_ends: tuple[str, ...] = (">",)
    call_ends: tuple[str, ...] = ("</function>",)
    params: tuple[str, ...] = ("<parameter=",)
    key_end: str = ">"
    value_start: str = ""
    param_end: str = "</parameter>"
    attributes: bool = False
    type_tags: tuple[str, str] | None = None
    bare: bool = True
    json_body: bool = False
    json_section: bool = False
    wrappers: tuple[str, ...] = ()
    trim: Literal["none", "newline"] = "newline"
    untyped: Literal["string", "json"] = "string"
    cdata: bool = False
    unknown: Literal["call", "content"] = "call"
    cut: Literal["call", "content", "drop"] = "call"
    next_param_ends: bool = True
    json_call: bool = False
    special: bool = False
    between: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        tags = self.type_tags or ()
        return (
            *self.sections, *self.section_ends, *self.calls, *self.name_ends, *self.call_ends,
            *self.params, self.key_end, self.value_start, self.param_end, *tags,
            *self.between, *self.ignored,
        )  # fmt: skip

    def run(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        def read(start: str) -> Wait[None]:
            if start in self.sections:
                yield from self._section(reader, out, tools)
            else:
                yield from self._call(reader, out, tools)

        starts = (*self.sections, *(self.calls if self.bare or not self.sections else ()))
        # An end without its start is noise that models do make.
        ignored = (*self.ignored, *self.section_ends)
        loop = ContentAndCalls(
            starts=starts,
            ignored=ignored,
            drop_cut=self.cut != "content",
            drop_refused=self.special,
        )
        yield from loop.run(reader, out, read)

    def _section(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        yield from reader.accept(*self.sections)
        while True:
            yield from reader.skip_space()
            found = yield from _next(reader, (*self.calls, *self.section_ends, *self.between))
            if found in self.between:
                reader.take(len(found))
                continue
            if found in self.calls:
                yield from self._call(reader, out, tools)
                reader.mark()
                continue
            if found:
                reader.take(len(found))
                reader.mark()
            elif self.json_section and reader.text[:1] in ("{", "["):
                yield from self._json_call(reader, out, tools)
                reader.mark()
                continue
            elif reader.text:
                _refuse(reader, (*self.calls, *self.section_ends))
            return

    def _call(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        yield from reader.accept(*self.calls)
        if self.json_call:
            yield from reader.skip_space()
            if reader.text[:1] in ("{", "["):
                yield from self._json_call(reader, out, tools)
                return
        name, end = yield from self._name(reader)
        self._check_name(reader, name, end, tools)
        arguments = Arguments(out, name)
        try:
            if not end.startswith("/"):
                yield from self._arguments(reader, arguments, name, tools)
        except MalformedError:
            if not arguments.streaming:
                raise
        if arguments.streaming:
            arguments.close()
            return
        pairs = self._unwrapped(arguments.pairs, name, tools)
        out.call(name, _known(name, pairs, tools) if self.unknown == "content" else pairs)

    def _json_call(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        value = yield from read_json(reader)
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(v, dict) for v in values):
            raise MalformedError
        for name, arguments in [call_of(v, no_arguments=True) for v in values]:
            known = tools.properties(name)
            out.call(name, {k: coerce(v, known.get(k)) for k, v in arguments.items()})
        yield from reader.skip_space()
        yield from reader.accept(*self.call_ends)

    def _check_name(self, reader: Reader, name: str, end: str, tools: ToolSchemas) -> None:
        over = not end or (reader.ended and not reader.text.strip())
        if over and (not name or self.cut != "call"):
            raise CutOffError
        if not name:
            raise MalformedError
        if self.unknown == "content" and tools.known and not tools.has(name):
            raise MalformedError

    def _name(self, reader: Reader) -> Wait[tuple[str, str]]:
        ends = (*self.name_ends, *(("/>",) if self.attributes else ()))
        others = (*self.params, *self.call_ends)
        hit = yield from reader.find(stops(*ends, *others))
        if hit is None:
            cut = stops(*ends, *others).held_from(reader.text)
            return self._named(reader.take(len(reader.text))[:cut]), ""
        text = reader.take(hit[0])
        if hit[1] in ends:
            reader.take(len(hit[1]))
        return self._named(text), hit[1]

    def _named(self, text: str) -> str:
        if not self.attributes:
            return text.strip().strip("\"'")
        return attributes_of("name=" + text).get("name", "")

    def _arguments(
        self, reader: Reader, arguments: Arguments, name: str, tools: ToolSchemas
    ) -> Wait[None]:
        """Up to and with the call's end; a section's end or another call ends it, too."""
        found = stops(*self.params, *self.call_ends, *self.section_ends, *self.calls)
        while True:
            yield from reader.skip_space()
            if self.json_body and not arguments.pairs and reader.text[:1] == "{":
                arguments.pairs = yield from read_json(reader)
                continue
            hit = yield from reader.find(found)
            if hit is None:
                if self.cut != "call":
                    raise CutOffError
                reader.take(len(reader.text))
                return
            noise = reader.take(hit[0])
            if noise.strip() and self.unknown == "content":
                raise MalformedError
            if hit[1] in self.params:
                reader.take(len(hit[1]))
                yield from self._parameter(reader, arguments, name, tools)
                continue
            if hit[1] in self.call_ends:
                reader.take(len(hit[1]))
            return

    def _parameter(
        self, reader: Reader, arguments: Arguments, name: str, tools: ToolSchemas
    ) -> Wait[None]:
        head, _ = yield from reader.until(stops(self.key_end))
        attributes = attributes_of("name=" + head) if self.attributes else {}
        key = attributes.get("name", "") if self.attributes else head.strip().strip("\"'")
        kind = attributes.get("string")
        if self.value_start:
            yield from reader.skip_space()
            if (yield from reader.accept("\\n")):
                yield from reader.skip_space()
            kind = yield from self._type_tag(reader)
            if not (yield from reader.accept(self.value_start)):
                return
        schema = tools.parameter(name, key)
        if key and self._is_text(key, kind, schema) and (yield from self._long_text(reader)):
            yield from self._pass_text(reader, arguments, key)
            return
        text = yield from self._value(reader)
        if not key:
            raise MalformedError
        if key in arguments.pairs and self.unknown == "content":
            raise MalformedError
        arguments.add(key, self._typed(text, kind, schema))

    def _is_text(self, key: str, kind: str | None, schema: Any) -> bool:
        """Whether the value is a string whatever it is, in a call that nothing can undo later."""
        if self.cdata or self.unknown == "content" or key in self.wrappers:
            return False
        types = types_of(schema)
        untyped = self._untyped(kind) == "string"
        return types == {"string"} or (not types and untyped)

    def _long_text(self, reader: Reader) -> Wait[bool]:
        """Whether no end begins in the first COMMIT_CHARS of the value; consumes nothing."""
        found = self._value_ends
        while True:
            hit = found.search(reader.text, 0, reader.ended)
            if hit and hit[0] < COMMIT_CHARS:
                return False
            if found.held_from(reader.text) >= COMMIT_CHARS:
                return True
            if not (yield from reader.more()):
                return False

    def _pass_text(self, reader: Reader, arguments: Arguments, key: str) -> Wait[None]:
        """Says the value as it comes, its last line break held back where that is trimmed."""
        if self.trim == "newline" and reader.text.startswith("\n"):
            reader.take(1)
        arguments.begin_text(key)
        reader.mark()
        held = ""

        def emit(piece: str) -> None:
            nonlocal held
            piece = held + piece
            held = "\n" if self.trim == "newline" and piece.endswith("\n") else ""
            arguments.text(piece.removesuffix(held))
            reader.mark()

        stop = yield from reader.pass_until(self._value_ends, emit)
        arguments.end_text()
        if stop == self.param_end:
            reader.take(len(stop))
        reader.mark()

    def _type_tag(self, reader: Reader) -> Wait[str | None]:
        if not self.type_tags or not (yield from reader.accept(self.type_tags[0])):
            return None
        kind, _ = yield from reader.until(stops(self.type_tags[1]))
        yield from reader.skip_space()
        return kind.strip()

    @property
    def _value_ends(self) -> Stops:
        others = self.params if self.next_param_ends else ()
        return stops(self.param_end, *others, *self.call_ends)

    def _value(self, reader: Reader) -> Wait[str]:
        if self.cdata and (yield from reader.accept("<![CDATA[")):
            text, _ = yield from reader.until(stops("]]>"))
            yield from reader.skip_space()
            yield from reader.accept(self.param_end)
            return text
        hit = yield from reader.find(self._value_ends)
        if hit is None:
            if self.cut != "call":
                raise CutOffError
            cut = self._value_ends.held_from(reader.text)
            return self._trimmed(reader.take(len(reader.text))[:cut])
        text = reader.take(hit[0])
        if hit[1] == self.param_end:
            reader.take(len(hit[1]))
        return self._trimmed(text)

    def _trimmed(self, text: str) -> str:
        if self.trim == "none":
            return text
        return text.removeprefix("\n").removesuffix("\n")

    def _typed(self, text: str, kind: str | None, schema: Any) -> Any:
        if self.cdata:
            text = html.unescape(text)
        return convert(text, schema, untyped=self._untyped(kind))

    def _untyped(self, kind: str | None) -> Literal["string", "json"]:
        """How a value without a schema is read, by what its tag says of it."""
        if kind is None:
            return self.untyped
        typed = ("false", "integer", "number", "boolean", "object", "array", "null")
        return "json" if kind in typed else "string"

    def _unwrapped(
        self, arguments: dict[str, Any], name: str, tools: ToolSchemas
    ) -> dict[str, Any]:
        if len(arguments) != 1 or not self.wrappers:
            return arguments
        ((key, value),) = arguments.items()
        known = tools.properties(name)
        if key not in self.wrappers or key in known or not known:
            return arguments
        if isinstance(value, str):
            value = convert(value, None, untyped="json")
        stands = isinstance(value, dict) and value.keys() <= known.keys()
        return value if stands else arguments


def attributes_of(text: str) -> dict[str, str]:
    """The attributes of a tag's inside, unquoted."""
    found = {}
    for key, value in _ATTRIBUTE.findall(text):
        quoted = value[:1] in "\"'" and value[:1] == value[-1:]
        found[key] = value[1:-1] if quoted else value
    return found


def _known(name: str, arguments: dict[str, Any], tools: ToolSchemas) -> dict[str, Any]:
    """The arguments that the tool has. Raises MalformedError if it has none of them."""
    known = tools.properties(name)
    kept = {k: v for k, v in arguments.items() if k in known} if known else arguments
    if arguments and not kept:
        raise MalformedError
    return kept


def _refuse(reader: Reader, expected: tuple[str, ...]) -> None:
    """Raises what says why none of the expected comes next."""
    if reader.ended and any(s.startswith(reader.text) for s in expected):
        raise CutOffError
    raise MalformedError


def _next(reader: Reader, strings: tuple[str, ...]) -> Wait[str]:
    """Which of these comes next, consuming nothing; "" if none."""
    while True:
        fitting = [s for s in strings if reader.text.startswith(s)]
        if fitting:
            return max(fitting, key=len)
        if not any(s.startswith(reader.text) for s in strings):
            return ""
        if not (yield from reader.more()):
            return ""
