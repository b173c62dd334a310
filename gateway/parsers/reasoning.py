"""Thoughts between tags: `<think>thought</think>answer` and its relatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from baton.gateway.parsers.output import Output
from baton.gateway.parsers.reader import Reader, Wait, stops
from baton.gateway.parsers.schema import ToolSchemas

_MAX_TAIL_CHARS = 4096
_MAX_BLANK_CHARS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtTags:
    """[`start`] thought `end` answer.

    `inside`: the text begins inside the thought, because the prompt opened it. `calls`: markers of
    tool calls, which end a thought that was not closed. `labels`: words dropped where a thought
    begins. `again`: thoughts may follow in the answer. `tail`: white space dropped at a thought's
    end; `head`: white space dropped where the answer begins. `wrappers`: tags dropped around the
    answer. `prefix`: put before everything, which is all content then. `stray`: an end without a
    start is dropped. `prompted`: with thinking on, the prompt opens the thought. `dropped`: taken
    out everywhere. `drops_partial`: half a marker at the end is dropped. `off`: there are no
    thoughts.
    """

    starts: tuple[str, ...] = ("<think>",)
    ends: tuple[str, ...] = ("</think>",)
    inside: bool = True
    calls: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    again: bool = False
    lead: str = ""
    tail: str = ""
    head: str = ""
    wrappers: tuple[str, ...] = ()
    prefix: str = ""
    stray: bool = True
    off: bool = False
    prompted: bool = True
    drops_partial: bool = False
    dropped: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.starts, *self.ends, *self.calls, *self.wrappers, *self.dropped)

    def switched(self, thinking: bool, *, plain: bool) -> ThoughtTags:
        """For a request with thinking on or off; off, and `plain`: all text is the answer."""
        inside = thinking and (self.prompted or self.inside)
        return replace(self, inside=inside, off=plain and not thinking)

    def opened_by(self, prompt: str) -> bool | None:
        """Whether a prompt ends inside a thought; None if it says nothing."""
        start = max(prompt.rfind(s) for s in self.starts)
        end = max(prompt.rfind(s) for s in self.ends)
        return None if start == end else start > end

    def run(self, reader: Reader, out: Output, tools: ToolSchemas) -> Wait[None]:
        if self.prefix:
            out.content(self.prefix)
        if self.prefix or self.off:
            yield from reader.pass_until(stops(), out.content)
            return
        reader.drops_partial = self.drops_partial
        inside = yield from self._begins(reader, out)
        while True:
            if inside:
                yield from self._thought(reader, out)
            if not (yield from self._answer(reader, out)):
                return
            inside = True

    def _begins(self, reader: Reader, out: Output) -> Wait[bool]:
        """Whether the text is a thought, its opening tags consumed."""
        seen = False
        while True:
            blank = len(reader.text) - len(reader.text.lstrip())
            rest = reader.text[blank:]
            if blank > _MAX_BLANK_CHARS:
                rest = ""
                break
            start = next((s for s in self.starts if rest.startswith(s)), None)
            if start is not None:
                if not self.inside and not seen:
                    out.content(reader.text[:blank])
                reader.take(blank + len(start))
                seen = True
                continue
            openings = (*self.starts, *self.ends, *self.labels)
            waits = not rest or any(s.startswith(rest) and s != rest for s in openings)
            if not (waits and (yield from reader.more())):
                break
        if seen or self.inside or any(rest.startswith(s) for s in self.labels):
            return True
        end = next((s for s in self.ends if rest.startswith(s)), None)
        if end is not None:
            reader.take(blank + len(end))
        return False

    def _thought(self, reader: Reader, out: Output) -> Wait[None]:
        if self.labels and not (yield from reader.accept(*self.labels)) and reader.ended:
            reader.text = "" if reader.text + "\n" in self.labels else reader.text
        emit = _Trimmed(out.reasoning, self.lead, self.tail)
        skipped = (*self.starts, *self.dropped)
        found = stops(*self.ends, *skipped, *self.calls)
        while True:
            stop = yield from reader.pass_until(found, emit)
            if stop in skipped:
                reader.take(len(stop or ""))
                continue
            break
        if stop in self.ends:
            reader.take(len(stop or ""))
        elif stop is None:
            emit.flush()

    def _answer(self, reader: Reader, out: Output) -> Wait[bool]:
        """To the end, or to another thought's start, which is consumed: True then."""
        emit = _Trimmed(out.content, self.head, "")
        starts = self.starts if self.again else ()
        ends = self.ends if self.stray else ()
        found = stops(*starts, *ends, *self.wrappers, *self.dropped)
        while True:
            stop = yield from reader.pass_until(found, emit)
            if stop is None:
                return False
            reader.take(len(stop))
            if stop in starts:
                return True


class _Trimmed:
    """Passes text on without the characters `lead` at its start and `tail` at its end."""

    def __init__(self, emit: Callable[[str], None], lead: str, tail: str) -> None:
        self._emit = emit
        self._lead = lead
        self._tail = tail
        self._held = ""
        self._started = False

    def __call__(self, text: str) -> None:
        if not self._started and self._lead:
            text = text.lstrip(self._lead)
        if not text:
            return
        self._started = True
        text = self._held + text
        kept = text.rstrip(self._tail) if self._tail else text
        if len(text) - len(kept) > _MAX_TAIL_CHARS:
            kept = text
        self._held = text[len(kept) :]
        if kept:
            self._emit(kept)

    def flush(self) -> None:
        """The text was cut off: nothing was at its end yet."""
        if self._held and self._started:
            self._emit(self._held)
        self._held = ""
