"""Calls whose body between two markers has a notation of its own: Gemma's, MiniMax M3's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from baton.gateway.parsers.json_text import MAX_DEPTH
from baton.gateway.parsers.machine import ContentAndCalls
from baton.gateway.parsers.output import Output
from baton.gateway.parsers.reader import CutOffError, MalformedError, Reader, Wait, stops
from baton.gateway.parsers.schema import ToolSchemas, convert, types_of

# Name and arguments of each call in a body; the flag says whether the body was ended.
Decode = Callable[[str, ToolSchemas, bool], list[tuple[str, dict[str, Any]]]]

_GEMMA_CALL = re.compile(r"\s*+(?:call(?=[:\s])\s*+)?+:?+\s*+(?P<name>[^\s{:]++)\s*+(?=\{)")
_GEMMA_NAME = re.compile(r"\s*+(?:call\s*+)?+:\s*+(?P<name>[^{}:\s]++(?:\s++[^{}:\s]++)*+)\s*+")
_GEMMA_KEY = re.compile(r"\s*+([^:{}\[\],]++):")
_GEMMA_BARE = re.compile(r"[^,{}\[\]]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyCalls:
    """`start` body `end`, in content. `cut`: a body that the end of the text cuts off is tried;
    otherwise only one that ends with `whole`, so that nothing but the end is missing.
    `end_after`: what an end must follow to be one, for bodies that may hold the same.
    """

    starts: tuple[str, ...]
    ends: tuple[str, ...]
    decode: Decode
    quotes: tuple[str, ...] = ()
    cut: bool = True
    whole: str = ""
    end_after: str = ""
    ignored: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.starts, *self.ends, *self.quotes, *self.ignored)

    def run(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        def read(start: str) -> Wait[None]:
            reader.take(len(start))
            body, end = yield from reader.until(stops(*self.ends))
            while end and self.end_after not in ("", body.rstrip()[-len(self.end_after) :]):
                more, next_end = yield from reader.until(stops(*self.ends))
                body, end = body + end + more, next_end
            whole = end or (self.whole and body.rstrip().endswith(self.whole))
            if not whole and not self.cut:
                raise CutOffError
            if not body.strip():
                return
            for name, arguments in self.decode(body, tools, bool(whole)):
                out.call(name, arguments)

        loop = ContentAndCalls(starts=self.starts, ignored=(*self.ignored, *self.ends))
        yield from loop.run(reader, out, read)


def gemma(quote: str, *, typed: bool = False, bare_names: bool = False) -> Decode:
    """Bodies like `call:name{key:<quote>text<quote>,n:[1,2],o:{...}}`. `typed`: what is not quoted
    is JSON even for a tool that the request does not have. `bare_names`: a name alone is a call
    without arguments.
    """

    def decode(body: str, tools: ToolSchemas, ended: bool) -> list[tuple[str, dict[str, Any]]]:
        match = _GEMMA_CALL.match(body)
        if match is None:
            bare = _GEMMA_NAME.fullmatch(body) if bare_names and ended else None
            if bare:
                return [(bare["name"], {})]
            raise MalformedError
        source = _Gemma(body, match.end(), quote, ended, typed=typed or tools.has(match["name"]))
        value = source.mapping(tools.only_parameters(match["name"]), 0)
        if source.text[source.at :].strip():
            raise MalformedError
        return [(match["name"], value)]

    return decode


class _Gemma:
    """Recursive descent over one body. Past its end, everything closes if it was cut off."""

    def __init__(self, text: str, at: int, quote: str, ended: bool, *, typed: bool) -> None:
        self.text = text
        self.at = at
        self._quote = quote
        self._ended = ended
        # Of a tool that the request does not have nothing is known: its values stay text.
        self._untyped: Literal["string", "json"] = "json" if typed else "string"

    def _peek(self) -> str:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1
        char = self.text[self.at : self.at + 1]
        if not char and self._ended:
            raise MalformedError
        return char

    def mapping(self, schema: Any, depth: int) -> dict[str, Any]:
        self.at += 1
        pairs: dict[str, Any] = {}
        properties = schema.get("properties") if isinstance(schema, dict) else None
        while self._peek() not in ("}", ""):
            match = _GEMMA_KEY.match(self.text, self.at)
            if match is None:
                if self._ended:
                    raise MalformedError
                self.at = len(self.text)
                break
            self.at = match.end()
            key = match[1].strip().replace(self._quote, "").strip("\"'")
            inner = properties.get(key) if isinstance(properties, dict) else None
            pairs[key] = self._value(inner, depth + 1)
            self._comma("}")
        self.at += 1
        return pairs

    def _comma(self, close: str) -> None:
        char = self._peek()
        if char == ",":
            self.at += 1
        elif char not in (close, ""):
            raise MalformedError

    def _value(self, schema: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise MalformedError
        char = self._peek()
        if char == "{":
            return self.mapping(schema, depth)
        if char == "[":
            return self._items(schema, depth)
        if self.text.startswith(self._quote, self.at):
            return self._quoted()
        if char == '"':
            return self._json_string()
        match = _GEMMA_BARE.match(self.text, self.at)
        bare = match.group() if match else ""
        self.at += len(bare)
        # Text is quoted here, so that a bare null is null whatever the schema says.
        bare = bare.strip()
        return None if bare == "null" else convert(bare, schema, untyped=self._untyped)

    def _items(self, schema: Any, depth: int) -> list[Any]:
        self.at += 1
        inner = schema.get("items") if isinstance(schema, dict) else None
        items = []
        while self._peek() not in ("]", ""):
            items.append(self._value(inner, depth + 1))
            self._comma("]")
        self.at += 1
        return items

    def _quoted(self) -> str:
        start = self.at + len(self._quote)
        end = self.text.find(self._quote, start)
        if end < 0:
            if self._ended:
                raise MalformedError
            self.at = len(self.text)
            # More likely is a forgotten quote before the last brackets than a cut right after them.
            return self.text[start:].rstrip(")}")
        self.at = end + len(self._quote)
        return self.text[start:end]

    def _json_string(self) -> str:
        try:
            value, self.at = json.JSONDecoder(strict=False).raw_decode(self.text, self.at)
        except ValueError:
            raise MalformedError from None
        if not isinstance(value, str):
            raise MalformedError
        return value


def minimax_m3(mark: str) -> Decode:
    """Bodies of nested elements whose tags all follow `mark`: `<invoke name="f">` `<key>text`
    `</key>` `</invoke>`.
    """
    invoke = re.compile(r'<invoke\s+name="([^"]*)">')

    def decode(body: str, tools: ToolSchemas, ended: bool) -> list[tuple[str, dict[str, Any]]]:
        pieces = body.split(mark)
        calls = []
        i = 1
        while i < len(pieces):
            match = invoke.match(pieces[i])
            i += 1
            if match is None:
                continue
            name = match[1]
            pairs, i = _elements(pieces, i, tools.only_parameters(name))
            calls.append((name, pairs))
        if not calls and (body.strip() or not ended):
            raise MalformedError
        return calls

    return decode


def _elements(pieces: list[str], i: int, schema: Any) -> tuple[dict[str, Any], int]:
    """The parameters from piece `i` on, up to the invoke's end or to what is no parameter."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    pairs: dict[str, Any] = {}
    while i < len(pieces):
        tag, text = _tag(pieces[i])
        if tag is None or tag.startswith("/"):
            return pairs, i + 1
        inner = properties.get(tag) if isinstance(properties, dict) else None
        value, end = _element(pieces, i + 1, tag, text, inner)
        if end is None:
            return pairs, len(pieces)
        pairs[tag] = value
        i = end
        closing = pieces[i - 1].partition(">")[2]
        if closing.strip():
            break
    while i < len(pieces) and not pieces[i].startswith("</invoke>"):
        i += 1
    return pairs, i + 1


def _tag(piece: str) -> tuple[str | None, str]:
    if not piece.startswith("<") or ">" not in piece:
        return None, piece
    tag, _, text = piece[1:].partition(">")
    return tag, text


def _element(
    pieces: list[str], i: int, name: str, text: str, schema: Any, depth: int = 0
) -> tuple[Any, int | None]:
    """The value of an element whose start is read; `i` is the next piece. None as the position:
    it is not closed. Raises MalformedError if another name is closed than was opened.
    """
    if depth > MAX_DEPTH:
        raise MalformedError
    children: list[tuple[str, Any]] = []
    texts = [text]
    properties = schema.get("properties") if isinstance(schema, dict) else None
    items = _items_of(schema)
    while i < len(pieces):
        tag, after = _tag(pieces[i])
        i += 1
        if tag is None:
            return None, None
        if tag == "/invoke" and name != "invoke":
            return None, None
        if tag.startswith("/"):
            if tag != f"/{name}":
                raise MalformedError
            return _built(children, texts, schema), i
        inner = items
        if isinstance(properties, dict) and tag in properties:
            inner = properties[tag]
        value, end = _element(pieces, i, tag, after, inner, depth + 1)
        if end is None:
            return None, None
        children.append((tag, value))
        texts.append(pieces[end - 1].partition(">")[2])
        i = end
    return None, None


def _items_of(schema: Any) -> Any:
    """The schema of an array's items, also where it is one of several choices."""
    if not isinstance(schema, dict):
        return None
    choices = [schema, *(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())]
    return next((c["items"] for c in choices if isinstance(c, dict) and "items" in c), None)


def _built(children: list[tuple[str, Any]], texts: list[str], schema: Any) -> Any:
    types = types_of(schema)
    text = "".join(texts)
    if not children:
        if not text.strip() and "string" not in types:
            if "array" in types:
                return []
            if "object" in types:
                return {}
        return convert(text, schema)
    if "array" in types and "object" not in types:
        return [value for _, value in children]
    if all(tag == "item" for tag, _ in children) and "array" in types:
        return [value for _, value in children]
    pairs: dict[str, Any] = {}
    for tag, value in children:
        if tag in pairs:
            earlier = pairs[tag]
            pairs[tag] = [*earlier, value] if isinstance(earlier, list) else [earlier, value]
        else:
            pairs[tag] = value
    if text.strip():
        pairs["$text" if "$text" not in pairs else "$$text"] = text
    return pairs
