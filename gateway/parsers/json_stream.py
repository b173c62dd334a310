"""Arguments passed on while they are written: a JSON object of which every prefix is checked.

Short arguments are read whole first, so that what turns out to be no call is content. Once
COMMIT_CHARS of an object stand, its call is said, and its text follows as it comes; where it breaks
off or goes wrong after that, what is open is closed.
"""

from __future__ import annotations

import json
import re

from baton.gateway.parsers.output import Output
from baton.gateway.parsers.reader import MalformedError, Reader, Wait

# Counted in the characters of the object, so that the cuts of the stream cannot matter.
COMMIT_CHARS = 160
MAX_DEPTH = 128
# A longer number is none; nor would Python read it.
MAX_SCALAR_CHARS = 4096
_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_PART_OF_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_SCALAR = re.compile(r"[-+.\w]+")
_IS_SCALAR = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null", re.ASCII)


class JsonPrefix:
    """How far a text that grows is the beginning of a JSON object. `push` says each certain part;
    a comma comes with what follows it, and a number when it is over, so that `closing` can end the
    object after any part.
    """

    __slots__ = ("_closers", "_comma", "_expect", "_in_key", "_in_string", "ended", "failed")

    def __init__(self) -> None:
        self._closers: list[str] = []
        self._expect = "object"
        self._comma = ""
        self._in_string = False
        self._in_key = False
        self.ended = False
        self.failed = False

    def push(self, text: str, at: int = 0) -> tuple[int, str]:
        """Reads `text` from `at` on: up to where, and what is certain, control characters in
        strings escaped. Stops at the object's end (`ended`) and where it is wrong (`failed`).
        """
        said: list[str] = []
        while at < len(text) and not (self.ended or self.failed):
            read = self._string(text, at, said) if self._in_string else self._token(text, at, said)
            if read == at:
                break
            at = read
        return at, "".join(said)

    def closing(self) -> str:
        """What ends the object after what `push` said."""
        text = '"' if self._in_string else ""
        if (self._in_string and self._in_key) or self._expect == "colon":
            text += ": null"
        elif self._expect == "value" and self._closers[-1:] == ["}"] and not self._in_string:
            text += " null"
        return text + "".join(reversed(self._closers))

    def rest(self, text: str) -> str:
        """What was not certain yet of what `push` read, before the `text` that it left."""
        return self._comma + text

    def _string(self, text: str, at: int, said: list[str]) -> int:
        plain = _PLAIN.match(text, at) or _ESCAPE.match(text, at)
        if plain:
            said.append(plain.group())
            return plain.end()
        char = text[at]
        if char == '"':
            self._in_string = False
            self._expect = "colon" if self._in_key else "comma"
            said.append(char)
        elif char < " ":
            said.append(json.dumps(char)[1:-1])
        else:
            self.failed = not _PART_OF_ESCAPE.match(text, at)
            return at
        return at + 1

    def _token(self, text: str, at: int, said: list[str]) -> int:
        space = _SPACE.match(text, at)
        if space and space.end() > at:
            return space.end()
        char = text[at]
        if char in "}]":
            return self._close(char, at, said)
        if char == "," and self._expect == "comma":
            self._comma = ", "
            self._expect = "key" if self._closers[-1] == "}" else "value"
        elif char == ":" and self._expect == "colon":
            said.append(": ")
            self._expect = "value"
        elif char == '"' and self._expect in ("key", "key or end", "value", "value or end"):
            self._in_string, self._in_key = True, self._expect.startswith("key")
            self._say(char, said)
        elif char in "{[" and self._expect in ("object", "value", "value or end"):
            return self._open(char, at, said)
        elif self._expect in ("value", "value or end"):
            return self._scalar(text, at, said)
        else:
            self.failed = True
            return at
        return at + 1

    def _say(self, text: str, said: list[str]) -> None:
        said.append(self._comma + text)
        self._comma = ""

    def _open(self, char: str, at: int, said: list[str]) -> int:
        if len(self._closers) >= MAX_DEPTH or (self._expect == "object" and char != "{"):
            self.failed = True
            return at
        self._say(char, said)
        self._closers.append("}" if char == "{" else "]")
        self._expect = "key or end" if char == "{" else "value or end"
        return at + 1

    def _close(self, char: str, at: int, said: list[str]) -> int:
        may_end = self._expect == "comma" or self._expect.endswith("or end")
        if not may_end or self._closers[-1:] != [char]:
            self.failed = True
            return at
        said.append(self._closers.pop())
        self._expect = "comma"
        self.ended = not self._closers
        return at + 1

    def _scalar(self, text: str, at: int, said: list[str]) -> int:
        match = _SCALAR.match(text, at)
        size = match.end() - at if match else 0
        if match and match.end() == len(text) and size <= MAX_SCALAR_CHARS:
            return at
        if not match or size > MAX_SCALAR_CHARS or not _IS_SCALAR.fullmatch(match.group()):
            self.failed = True
            return at
        self._say(match.group(), said)
        self._expect = "comma"
        return match.end()


def stream_arguments(
    reader: Reader,
    out: Output,
    name: str,
    call_id: str | None = None,
    at: int = 0,
    *,
    closes: bool = True,
) -> Wait[bool]:
    """Says a call whose arguments are the JSON object at `at` of the reader's text, as they come,
    and consumes them. False, with nothing consumed, if the object is short, wrong or cut off within
    COMMIT_CHARS. `closes`: an object that the text's end cuts off is closed.
    """
    prefix = JsonPrefix()
    limit, position, start = at + COMMIT_CHARS, at, ""
    while True:
        position, text = prefix.push(reader.text[:limit], position)
        start += text
        if prefix.ended or prefix.failed:
            return False
        if len(reader.text) >= limit:
            break
        if not (yield from reader.more()):
            return False
    out.begin_call(name, call_id)
    out.arguments(start)
    reader.take(position)
    reader.mark()
    while True:
        position, text = prefix.push(reader.text)
        out.arguments(text)
        reader.take(position)
        reader.mark()
        if prefix.ended or prefix.failed or not (yield from _more(reader)):
            break
    cut = not (prefix.ended or prefix.failed)
    if cut and not closes:
        out.arguments(prefix.rest(reader.text))
    elif not prefix.ended:
        out.arguments(prefix.closing())
    if cut:
        reader.take(len(reader.text))
    return True


def _more(reader: Reader) -> Wait[bool]:
    """Waits for more text; False at the end, and where a part of a token grows beyond bounds."""
    try:
        return (yield from reader.more())
    except MalformedError:
        return False
