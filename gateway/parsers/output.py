"""Where a machine says what it found."""

from __future__ import annotations

from typing import Any

from baton.gateway.parsers.events import (
    ArgumentsDelta,
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallStart,
)
from baton.gateway.parsers.json_text import dumps, whole_characters

MAX_BLANK_CHARS = 4096


class Output:
    """Collects events. White space that only parts calls from each other or from the start is
    dropped: a client sees no empty content beside calls. `calls_last`: what follows a call and is
    none is dropped.
    """

    __slots__ = ("_blank", "_calls_last", "_keeps_blanks", "_plain", "events", "num_calls")

    def __init__(self, *, keeps_blanks: bool = False, calls_last: bool = False) -> None:
        self.events: list[Event] = []
        self.num_calls = 0
        self._blank = ""
        self._keeps_blanks = keeps_blanks
        self._calls_last = calls_last
        self._plain = keeps_blanks

    def content(self, text: str) -> None:
        """More of the answer."""
        if self._calls_last and self.num_calls:
            return
        if not self._plain:
            text = self._blank + text
            self._blank = ""
            if not text.strip() and len(text) <= MAX_BLANK_CHARS:
                self._blank = text
                return
            self._plain = True
        if text:
            self.events.append(ContentDelta(text))

    def reasoning(self, text: str) -> None:
        """More of the thought."""
        if text:
            self.events.append(ReasoningDelta(text))

    def call(self, name: str, arguments: Any, call_id: str | None = None) -> None:
        """A call whose arguments are complete."""
        self.begin_call(name, call_id)
        self.arguments(dumps(arguments))

    def begin_call(self, name: str, call_id: str | None = None) -> None:
        """A call whose arguments follow."""
        call_id = whole_characters(call_id) if call_id is not None else None
        self.events.append(ToolCallStart(self.num_calls, call_id, whole_characters(name)))
        self.num_calls += 1
        self._blank = ""
        self._plain = self._keeps_blanks

    def arguments(self, json_text: str) -> None:
        """More of the last call's arguments."""
        if json_text:
            self.events.append(ArgumentsDelta(self.num_calls - 1, json_text))

    def close(self) -> None:
        """The text is over."""
        if self._blank and not self.num_calls:
            self.events.append(ContentDelta(self._blank))
        self._blank = ""

    def drain(self) -> list[Event]:
        """The events since the last drain."""
        events, self.events = self.events, []
        return events
