"""Cases recorded from vLLM's and SGLang's own tests: whole, in the recorded pieces, and in pieces
of 1, 3 and 7 characters.
"""

from __future__ import annotations

import json

import pytest
from tests.gateway.parsers.recorded import HERE, KINDS, Recorded, cases, differences

# The recorded stream was not told of its end; that its result lacks the tail is no difference.
TAIL_MISSING = "tail"
# Deltas of longer streams, recorded alone. No parser can give them all.
FRAGMENT = "fragment"


def wrong(case: Recorded) -> list[str]:
    """In which ways of feeding it the answer is not the recorded one."""
    ways = {f"chunks of {n}": case.pieces(n) for n in (1, 3, 7)}
    for i, pieces in enumerate(case.recorded_pieces()):
        ways[f"recorded stream {i}"] = pieces
    whole = case.parsed([case.text])
    failed = [] if case.agrees(whole) else ["whole"]
    for way, pieces in ways.items():
        found = case.parsed(pieces)
        assert found == whole, f"{case.ids[0]} in {way} differs from the whole"
        failed += [] if case.agrees(found) else [way]
    return failed


@pytest.mark.parametrize("kind", KINDS)
def test_every_case_is_as_recorded_or_listed_with_a_reason(kind: str) -> None:
    listed = differences()
    for case in cases(kind):
        failed = wrong(case)
        for name in case.ids:
            assert bool(failed) == (name in listed), f"{name}: {failed or 'agrees, yet is listed'}"


def test_at_least_95_percent_are_as_recorded() -> None:
    listed = differences()
    every = [case for kind in KINDS for case in cases(kind)]
    fragments = {name for case in every if case.fragment for name in case.ids}
    names = [name for case in every for name in case.ids]
    assert len(names) == len(set(names)) == 3323
    assert {name for name in names if listed.get(name) == FRAGMENT} < fragments
    whole = [name for name in names if name not in fragments]
    assert len(whole) == 3006
    as_noted = [name for name in whole if listed.get(name) in (None, TAIL_MISSING)]
    strict = [name for name in whole if name not in listed]
    assert len(as_noted) / len(whole) >= 0.959
    assert len(strict) / len(whole) >= 0.95
    assert sum(name not in listed for name in names) / len(names) >= 0.88


def test_every_reason_is_given() -> None:
    entries = json.loads((HERE / "differences.json").read_text(encoding="utf-8"))
    assert all(len(entry["reason"]) > 30 and entry["ids"] for entry in entries.values())
