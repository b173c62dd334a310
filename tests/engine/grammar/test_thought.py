"""Where thoughts begin and end, token by token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.engine.grammar.thought import ThoughtTracker
from baton.protos.constraints import Thought


def follow(thought: Thought, tokens: list[int]) -> tuple[list[int], ThoughtTracker]:
    """Says the tokens, but what is forced is said first; returns what was said."""
    tracker, said = ThoughtTracker(thought), []
    wanted = iter(tokens)
    while True:
        token = tracker.forced[-1] if tracker.forced else next(wanted, None)
        if token is None:
            return said, tracker
        said.append(token)
        tracker.advance(token)


@pytest.mark.parametrize(
    ("thought", "tokens", "said", "count"),
    [
        (Thought(end_ids=(9,), open=True), [1, 2, 9, 3], [1, 2, 9, 3], 2),
        (Thought(end_ids=(9,), start_ids=(8,)), [1, 8, 2, 9, 3], [1, 8, 2, 9, 3], 1),
        # Two thoughts, one budget.
        (
            Thought(end_ids=(9,), start_ids=(8,), budget=3),
            [8, 1, 9, 8, 1, 1, 5],
            [8, 1, 9, 8, 1, 1, 9, 5],
            3,
        ),
        (Thought(end_ids=(9,), open=True, budget=0), [1], [9, 1], 0),
        (Thought(end_ids=(7, 9), open=True, budget=2), [1, 1, 1], [1, 1, 7, 9, 1], 2),
        # It has begun to end by itself.
        (Thought(end_ids=(7, 9), open=True, budget=1), [1, 1], [1, 7, 9, 1], 1),
        (Thought(end_ids=(7, 9), open=True, budget=2), [1, 7, 7, 3], [1, 7, 7, 9, 3], 2),
        (
            Thought(end_ids=(9,), open=True, budget=1, close_ids=(5, 6, 9)),
            [1, 2],
            [1, 5, 6, 9, 2],
            3,
        ),
    ],
)
def test_thoughts(thought: Thought, tokens: list[int], said: list[int], count: int) -> None:
    found, tracker = follow(thought, tokens)
    assert found == said
    assert not tracker.inside
    assert tracker.num_tokens == count
    assert ThoughtTracker.replayed(thought, said).num_tokens == count


few = st.integers(0, 3)


@given(
    st.lists(few, min_size=1, max_size=3).map(tuple),
    st.lists(few, max_size=2).map(tuple),
    st.integers(0, 6),
    st.lists(few, max_size=30),
)
def test_no_budget_is_overrun(
    end: tuple[int, ...], start: tuple[int, ...], budget: int, tokens: list[int]
) -> None:
    thought = Thought(end_ids=end, start_ids=start, open=True, budget=budget)
    said, tracker = follow(thought, tokens)
    # A marker counts until it is whole; so much may a count be above the budget for a moment.
    assert tracker.num_tokens <= budget + len(end)
    replayed = ThoughtTracker.replayed(thought, said)
    assert (replayed.inside, replayed.num_tokens) == (tracker.inside, tracker.num_tokens)
