"""One call's arguments while they are read key by key."""

from __future__ import annotations

from typing import Any

from baton.gateway.parsers.json_text import dumps
from baton.gateway.parsers.output import Output


class Arguments:
    """Gathers pairs, and says them with the call; from the first long text on, says everything as
    it comes.
    """

    __slots__ = ("_in_text", "_name", "_num_said", "_out", "pairs", "streaming")

    def __init__(self, out: Output, name: str) -> None:
        self.pairs: dict[str, Any] = {}
        self.streaming = False
        self._out = out
        self._name = name
        self._num_said = 0
        self._in_text = False

    def add(self, key: str, value: Any) -> None:
        """A key and its whole value."""
        if self.streaming:
            self._key(key)
            self._out.arguments(dumps(value))
        else:
            self.pairs[key] = value

    def begin_text(self, key: str) -> None:
        """A key whose value is a string that `text` says piece by piece, up to `end_text`."""
        if not self.streaming:
            self.streaming = True
            self._out.begin_call(self._name)
            self._out.arguments("{")
            for earlier, value in self.pairs.items():
                self.add(earlier, value)
        self._key(key)
        self._out.arguments('"')
        self._in_text = True

    def text(self, piece: str) -> None:
        """More of the string."""
        self._out.arguments(dumps(piece)[1:-1])

    def end_text(self) -> None:
        """The string is over."""
        self._out.arguments('"')
        self._in_text = False

    def close(self) -> None:
        """The call is over, wherever that was; only after `begin_text`."""
        self._out.arguments('"}' if self._in_text else "}")

    def _key(self, key: str) -> None:
        self._out.arguments((", " if self._num_said else "") + dumps(key) + ": ")
        self._num_said += 1
