"""What a client reads of a grammar that llguidance refuses."""

from __future__ import annotations

import pytest

from baton.engine.grammar.guidance_backend import first_line


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            'at 2(4): failed: Unimplemented keys: ["uniqueItems"]\n   1 | start: a\n 2 | a: x\n^',
            'at 2(4): failed: no backend enforces ["uniqueItems"]',
        ),
        (
            "regex parse error:\n    [a|b\n    ^\nerror: unclosed class\n   1 | start: /[a/\n  ^\n",
            "invalid regular expression: unclosed class",
        ),
        (
            'at 5(9): failed to compile JSON schema: Unimplemented keys: ["not"]\n   1 | a',
            'in a JSON schema of it: no backend enforces ["not"]',
        ),
        (
            "oneOf constraints are not supported. Enable 'coerce_one_of' option to approximate it",
            'no backend enforces ["oneOf"] where more than one branch may fit',
        ),
        ("Too many items <non-verbose/>", "Too many items"),
        ("too complex\n<state>\nrows", "too complex"),
    ],
)
def test_the_reason_alone(message: str, told: str) -> None:
    assert first_line(message) == told
