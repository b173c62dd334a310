"""What every format is: a declaration that can run over a Reader; and the loop they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from baton.gateway.parsers.events import Event, joined
from baton.gateway.parsers.output import Output
from baton.gateway.parsers.reader import (
    MAX_HELD_CHARS,
    CutOffError,
    MalformedError,
    Reader,
    Wait,
    stops,
)
from baton.gateway.parsers.schema import ToolSchemas

_FED_CHARS = 4096

# Reads the call that a start announces, which is still in the reader's text. Raises MalformedError
# if it is none; what it consumed after its last `reader.mark()` is then text.
ReadCall = Callable[[str], Wait[None]]


class Machine(Protocol):
    """A format of tool calls."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Strings that must reach the parser even where they are special tokens."""

    def run(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        """Reads one answer to its end."""


class MachineParser:
    """One answer's text in, events out. Not shared between answers."""

    def __init__(
        self,
        machine: Machine,
        tools: ToolSchemas,
        *,
        keeps_blanks: bool = False,
        calls_last: bool = False,
        max_held: int = MAX_HELD_CHARS,
    ) -> None:
        self._reader = Reader(max_held)
        self._out = Output(keeps_blanks=keeps_blanks, calls_last=calls_last)
        self._running: Wait[object] = machine.run(self._reader, self._out, tools)
        self._done = False

    @property
    def num_held(self) -> int:
        """Characters that are fed and neither said nor decided yet."""
        return self._reader.num_held

    def feed(self, text: str) -> list[Event]:
        """What became certain with this text."""
        # Whatever is consumed moves the rest of what was fed: so not too much at a time.
        for start in range(0, len(text), _FED_CHARS):
            self._feed(text[start : start + _FED_CHARS])
        return joined(self._out.drain())

    def finish(self) -> list[Event]:
        """The rest; nothing may be fed afterwards."""
        self._reader.ended = True
        while not self._done:
            self._step()
        self._out.close()
        return joined(self._out.drain())

    def _feed(self, text: str) -> None:
        passing = self._reader.passing
        if self._done:
            self._out.content(text)
        elif passing is not None and not passing.found.begins_in(text):
            # What nearly every token does, without waking the machine.
            passing.emit(text)
        else:
            self._reader.text += text
            self._step()

    def _step(self) -> None:
        try:
            next(self._running)
        except StopIteration:
            self._done = True
        except MalformedError:
            # Too much was held outside a call: the rest is content.
            self._reader.put_back()
            self._running = self._reader.pass_until(stops(), self._out.content)
            self._step()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentAndCalls:
    """Content with calls in it, to the end.

    `ignored` strings are dropped where they are content. A start whose call is malformed is
    content, what follows it is read again, and the next ignored string is kept, for it is its end.
    `drop_cut`: a call that the end cuts off is dropped. `drop_refused`: of a malformed call, its
    markers are dropped, for they are no text.
    """

    starts: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    drop_cut: bool = False
    drop_refused: bool = False

    def run(self, reader: Reader, out: Output, read_call: ReadCall) -> Wait[None]:
        """Reads with `read_call` what follows each start."""
        found = stops(*self.starts, *self.ignored)
        refused = False
        while True:
            stop = yield from reader.pass_until(stops() if reader.weary else found, out.content)
            if stop is None:
                return
            if stop in self.ignored:
                text = reader.take(len(stop))
                if refused:
                    out.content(text)
                refused = False
            else:
                refused = yield from self._refuses(reader, out, read_call, stop)

    def _refuses(self, reader: Reader, out: Output, read_call: ReadCall, start: str) -> Wait[bool]:
        """Reads a call; True if it was none, so that its start is content now."""
        num_calls = out.num_calls
        reader.mark()
        try:
            yield from read_call(start)
        except MalformedError as error:
            reader.put_back()
            if self.drop_cut and isinstance(error, CutOffError):
                reader.take(len(reader.text))
            elif out.num_calls == num_calls:
                marker = reader.take(len(start))
                if self.drop_refused:
                    return False
                out.content(marker)
                return True
        reader.unmark()
        return False
