"""What a request wishes of the events of an answer, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baton.gateway.parsers.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
)
from baton.gateway.parsers.formats import StreamParser, WithoutCalls
from baton.gateway.parsers.reader import MAX_HELD_CHARS


class ContentForSure:
    """Where an answer has neither content nor calls, its thought is the content.

    The thought is kept back until that shows (or it is longer than what is held for a call).
    """

    def __init__(self, parser: StreamParser) -> None:
        self._parser = parser
        self._held: list[Event] | None = []
        self._size = 0

    def feed(self, text: str) -> list[Event]:
        return self._passed(self._parser.feed(text))

    def finish(self) -> list[Event]:
        events = self._passed(self._parser.finish())
        held, self._held = self._held or [], None
        texts = [e.text for e in held if isinstance(e, ReasoningDelta)]
        return [*events, *([ContentDelta("".join(texts))] if texts else held)]

    def _passed(self, events: list[Event]) -> list[Event]:
        if self._held is None or not events:
            return events
        self._held += events
        self._size += sum(len(e.text) for e in events if isinstance(e, ReasoningDelta))
        if self._size <= MAX_HELD_CHARS and not any(map(_answers, events)):
            return []
        held, self._held = self._held, None
        return held


def _answers(event: Event) -> bool:
    if isinstance(event, ContentDelta):
        return bool(event.text.strip())
    return not isinstance(event, ReasoningDelta)


def as_wished(
    parser: StreamParser, template_kwargs: Mapping[str, Any], *, calls: bool = True
) -> StreamParser:
    """The parser for a request with these `chat_template_kwargs`: with `force_nonempty_content`, as
    NVIDIA's and IBM's templates call it, an answer always has content; `calls`: it may have calls.
    """
    if template_kwargs.get("force_nonempty_content") is True:
        parser = ContentForSure(parser)
    return parser if calls else WithoutCalls(parser)
