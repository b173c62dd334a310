"""Where an output's thoughts begin and end, and what their budget forces."""

from __future__ import annotations

from collections.abc import Iterable

from baton.protos.constraints import Thought


class ThoughtTracker:
    """Follows one output, token by token.

    inside: in a thought. num_tokens: of all its thoughts, markers not counted. A marker that is
    several tokens long counts as thought until its last token is seen.
    forced: the tokens that must come next, first one last.
    """

    __slots__ = ("_tail", "_thought", "forced", "inside", "num_tokens")

    def __init__(self, thought: Thought) -> None:
        self._thought = thought
        self._tail: list[int] = []
        self.inside = thought.open
        self.num_tokens = 0
        self.forced: list[int] = []
        self._keep_budget()

    @classmethod
    def replayed(cls, thought: Thought, token_ids: Iterable[int]) -> ThoughtTracker:
        """A tracker that has followed these output tokens."""
        tracker = cls(thought)
        for token_id in token_ids:
            tracker.advance(token_id)
        return tracker

    @property
    def busy(self) -> bool:
        """Whether the next token is a thought's, or one of its markers'."""
        return self.inside or bool(self.forced)

    def starts_with(self, token_id: int) -> bool:
        """Whether a thought may begin with this token."""
        return self._thought.start_ids[:1] == (token_id,)

    @property
    def first_start_id(self) -> int | None:
        return self._thought.start_ids[0] if self._thought.start_ids else None

    def begin(self, token_id: int) -> None:
        """The output begins with a thought's first token: the rest of its marker must follow."""
        self.forced = list(reversed(self._thought.start_ids[1:]))
        self._see(token_id)

    def advance(self, token_id: int) -> None:
        if self.forced and self.forced[-1] == token_id:
            self.forced.pop()
        else:
            self.forced.clear()
        self._see(token_id)

    def _see(self, token_id: int) -> None:
        thought, tail = self._thought, self._tail
        tail.append(token_id)
        if self.inside:
            self.num_tokens += 1
            if _ends_with(tail, thought.end_ids):
                self.inside = False
                self.num_tokens -= len(thought.end_ids)
                tail.clear()
                self.forced.clear()
            else:
                self._keep_budget()
        elif thought.start_ids and _ends_with(tail, thought.start_ids):
            self.inside = True
            tail.clear()
            self._keep_budget()
        longest = max(len(thought.end_ids), len(thought.start_ids))
        del tail[:-longest]

    def _keep_budget(self) -> None:
        thought = self._thought
        if not self.inside or self.forced or thought.budget is None:
            return
        begun = self._begun_end()
        if self.num_tokens - begun >= thought.budget:
            rest = thought.end_ids[begun:] if begun else thought.close_ids or thought.end_ids
            self.forced = list(reversed(rest))

    def _begun_end(self) -> int:
        """How much of the end marker the last tokens are."""
        end = self._thought.end_ids
        sizes = range(len(end) - 1, 0, -1)
        return next((size for size in sizes if _ends_with(self._tail, end[:size])), 0)


def _ends_with(tail: list[int], marker: tuple[int, ...]) -> bool:
    return len(tail) >= len(marker) and tuple(tail[-len(marker) :]) == marker
