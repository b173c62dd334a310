"""Text that arrives in pieces, read by a generator that waits where it cannot decide yet.

A machine is a generator over a Reader: it looks at `text` (what is not consumed yet), consumes, and
yields when it needs more. It decides only what no further text could change, so the pieces that the
text came in cannot change the outcome.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import NamedTuple, TypeVar

T = TypeVar("T")

# A generator that waits for text with a bare yield and returns a T.
Wait = Generator[None, None, T]

# What one call may take before it counts as text: bounds what a parser ever holds.
MAX_HELD_CHARS = 1 << 20

# What may be put back and read again in one answer, all in all: text that begins calls again and
# again and ends none would otherwise be read to its end for each of them.
MAX_REREAD_CHARS = 1 << 18


class MalformedError(Exception):
    """Raised and caught inside a machine: what began like a call is none."""


class CutOffError(MalformedError):
    """The text ended inside what began like a call."""


class Stops:
    """Strings to look for at once; the one that begins first wins, then the longest."""

    __slots__ = ("_beginnings", "_firsts", "_longest", "_pattern")

    def __init__(self, strings: tuple[str, ...]) -> None:
        longest_first = sorted((s for s in strings if s), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._longest = len(longest_first[0]) if longest_first else 0
        self._firsts = frozenset(s[0] for s in longest_first)
        self._beginnings = frozenset(s[:i] for s in longest_first for i in range(1, len(s)))

    def begins_in(self, text: str) -> bool:
        """Whether any character of `text` begins a stop."""
        return not self._firsts.isdisjoint(text)

    def search(self, text: str, start: int, ended: bool) -> tuple[int, str] | None:
        """The first stop from `start` on that no further text could displace."""
        match = self._pattern.search(text, start)
        if match is None:
            return None
        certain = ended or match.start() <= len(text) - self._longest
        if not certain and match.start() >= self.held_from(text, start):
            return None
        return match.start(), match.group()

    def held_from(self, text: str, start: int = 0) -> int:
        """Where the part begins that may turn into a stop; len(text) if there is none."""
        size = len(text)
        for i in range(max(start, size - self._longest + 1), size):
            if text[i] in self._firsts and text[i:] in self._beginnings:
                return i
        return size


@lru_cache(maxsize=512)
def stops(*strings: str) -> Stops:
    """A Stops of these, compiled once."""
    return Stops(strings)


class Passing(NamedTuple):
    """Text goes to `emit` until one of the stops begins."""

    found: Stops
    emit: Callable[[str], None]


class Reader:
    """The text of one answer between the one who feeds it and the machine that reads it."""

    __slots__ = (
        "_kept",
        "_num_reread",
        "_size",
        "drops_partial",
        "ended",
        "max_held",
        "passing",
        "text",
    )

    def __init__(self, max_held: int = MAX_HELD_CHARS) -> None:
        self.text = ""
        self.ended = False
        self.max_held = max_held
        # Whether what may be the beginning of a stop is dropped where the text ends: so where stops
        # are special tokens, which text cannot resemble.
        self.drops_partial = False
        # Set while all text passes on up to a stop: where it goes, unless a stop begins in it.
        self.passing: Passing | None = None
        self._kept: list[str] | None = None
        self._size = 0
        self._num_reread = 0

    @property
    def weary(self) -> bool:
        """Whether so much was read in vain that no more calls are looked for."""
        return self._num_reread > MAX_REREAD_CHARS

    @property
    def num_held(self) -> int:
        """Characters that wait for more text, or could be put back."""
        return len(self.text) + self._size

    def take(self, count: int) -> str:
        """Consumes that many characters."""
        taken, self.text = self.text[:count], self.text[count:]
        if self._kept is not None:
            self._kept.append(taken)
            self._size += count
        return taken

    def mark(self) -> None:
        """What is consumed from here on can be put back."""
        self._kept, self._size = [], 0

    def unmark(self) -> None:
        """What was consumed stays consumed."""
        self._kept, self._size = None, 0

    def put_back(self) -> bool:
        """Back to the mark, if there is one; False if nothing was consumed since."""
        kept = "".join(self._kept or ())
        # At the end all text was looked at; before, what was not consumed depends on its cuts.
        self._num_reread += len(kept) + (len(self.text) if self.ended else 0)
        self.text = kept + self.text
        self.unmark()
        return bool(kept)

    def more(self) -> Wait[bool]:
        """Waits for more text; False at the end. Raises MalformedError if too much is held."""
        self.check_held(len(self.text))
        if self.ended:
            return False
        yield
        return True

    def check_held(self, size: int) -> None:
        """Raises MalformedError if a call that has so much of `text` takes more than is held for
        one. Checked where one ends too, so that it is refused however its text arrived.
        """
        if size + self._size > self.max_held:
            self._num_reread += self.max_held
            raise MalformedError

    def pass_until(self, found: Stops, emit: Callable[[str], None]) -> Wait[str | None]:
        """Emits text as it comes, up to a stop, which is left in `text` and returned; None at the
        end.
        """
        while True:
            hit = found.search(self.text, 0, self.ended)
            held = hit[0] if hit else len(self.text)
            if not hit and (not self.ended or self.drops_partial):
                held = found.held_from(self.text)
            if held:
                emit(self.take(held))
            if hit:
                return hit[1]
            if self.ended:
                self.take(len(self.text))
                return None
            if not self.text:
                self.passing = Passing(found, emit)
            yield
            self.passing = None

    def find(self, found: Stops, start: int = 0) -> Wait[tuple[int, str] | None]:
        """Where in `text` a stop is, consuming nothing; None if the text ends without one."""
        while True:
            hit = found.search(self.text, start, self.ended)
            if hit:
                self.check_held(hit[0] + len(hit[1]))
                return hit
            searched = found.held_from(self.text, start)
            if not (yield from self.more()):
                return None
            start = max(start, searched)

    def until(self, found: Stops) -> Wait[tuple[str, str]]:
        """Consumes up to and with a stop: the text before it, and the stop ("" at the end)."""
        hit = yield from self.find(found)
        if hit is None:
            return self.take(len(self.text)), ""
        before = self.take(hit[0])
        return before, self.take(len(hit[1]))

    def skip_space(self, limit: int = 4096) -> Wait[str]:
        """Consumes white space up to `limit`, and returns it."""
        skipped = ""
        while True:
            size = len(self.text) - len(self.text.lstrip())
            size = min(size, limit - len(skipped))
            skipped += self.take(size)
            if self.text or len(skipped) >= limit or not (yield from self.more()):
                return skipped

    def accept(self, *strings: str) -> Wait[str]:
        """Consumes the longest of these that comes next, and returns it; "" if none does."""
        while True:
            may_come = any(s.startswith(self.text) and len(s) > len(self.text) for s in strings)
            if may_come and not self.ended:
                yield
                continue
            fitting = [s for s in strings if self.text.startswith(s)]
            return self.take(len(max(fitting, key=len))) if fitting else ""
