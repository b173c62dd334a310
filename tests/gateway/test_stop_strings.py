"""Stop strings are found whatever the pieces, and only what may begin one is held back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.gateway.stop_strings import StopChecker

_TEXT = st.text(st.sampled_from("abc"), max_size=30)
_STOPS = st.lists(st.text(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=4)


def _expected(text: str, stops: list[str], keep: bool) -> tuple[str, bool]:
    """The definition: the shortest beginning of the text that ends in a stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end if keep else end - max(map(len, found))], True
    return text, False


@settings(max_examples=400, deadline=None)
@given(text=_TEXT, stops=_STOPS, cuts=st.lists(st.integers(1, 6), min_size=1), keep=st.booleans())
def test_any_split_gives_the_same(text: str, stops: list[str], cuts: list[int], keep: bool) -> None:
    checker = StopChecker(stops, keep=keep)
    sent, at, i = "", 0, 0
    while at < len(text):
        size = cuts[i % len(cuts)]
        part, stopped = checker.push(text[at : at + size])
        sent += part
        if stopped:
            assert (sent, True) == _expected(text, stops, keep)
            return
        at, i = at + size, i + 1
        held = text[:at][len(sent) :]
        assert len(held) < max(map(len, stops))
        assert any(stop.startswith(held) for stop in stops)
    assert (sent + checker.finish(), False) == _expected(text, stops, keep)


@pytest.mark.parametrize("stops", [[], ["a", ""]])
def test_needs_something_to_look_for(stops: list[str]) -> None:
    with pytest.raises(ValueError, match="non-empty"):
        StopChecker(stops)
