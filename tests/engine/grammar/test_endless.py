"""Rules that can be begun but never finished, in both notations."""

from __future__ import annotations

import itertools

import pytest

from baton.engine.grammar.endless import check_ends
from baton.protos.constraints import GrammarKind
from baton.protos.errors import GrammarError

EBNF, LARK = GrammarKind.EBNF, GrammarKind.LARK


@pytest.mark.parametrize(
    ("kind", "source", "rule"),
    [
        (EBNF, 'root ::= "x" root', "root"),
        (EBNF, 'root ::= "a" | list\nlist ::= "[" item ("," item)* "]"\nitem ::= list', "list"),
        (EBNF, 'root ::= ("x" root){1,3}', "root"),
        (EBNF, 'root ::= a?\na ::= [^"\\]] b # c | "d"\nb ::= a "::=" b+', "a"),
        (LARK, 'start: "x" start', "start"),
        (LARK, 'start: a | /b+/\n?a: C a~1..2\nC: "c"i\n', "a"),
        (
            LARK,
            '// start: "a"\nstart: [a] %json {"a": ": b"} \n  a[lazy]: b\n  b.2: "(" a ")"\n',
            "a",
        ),
        (LARK, 'start: "x"\n  | a <tool_call>\na: (a | b) "y" -> z\nb: a', "a"),
    ],
)
def test_the_rule_to_blame_is_named(kind: GrammarKind, source: str, rule: str) -> None:
    with pytest.raises(GrammarError, match=f"the rule '{rule}' can never end") as caught:
        check_ends(kind, source)
    assert caught.value.reason == "unmatchable"


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (EBNF, 'root ::= "x" root | ""'),
        (EBNF, 'root ::= "x" | unused\nunused ::= [a-z]\nother ::= other "y"'),
        (EBNF, 'root ::= item{0,4} tail*\nitem ::= "(" root ")"\ntail ::= \'r\' root'),
        (EBNF, 'root ::= "a" undefined | (= "x" root)'),
        (LARK, 'start: "x" start?'),
        (LARK, 'start: value\nvalue: "[" (value ("," value)*)? "]" | NUMBER\nNUMBER: /[0-9]+/'),
        (LARK, 'start: a ~0..3 [a] "b"\na: "(" start ")"\n%ignore /[ \\n]+/\n%import common.INT'),
        (LARK, "start: & start"),
    ],
)
def test_what_can_end_or_is_not_understood_passes(kind: GrammarKind, source: str) -> None:
    check_ends(kind, source)


def test_large_grammars_take_one_pass() -> None:
    names = [f"r{i}" for i in range(3000)]
    chain = "".join(f"{a} ::= {b} | {a} {b}\n" for a, b in itertools.pairwise(names))
    check_ends(EBNF, f'root ::= r0\n{chain}{names[-1]} ::= "x"')
    with pytest.raises(GrammarError, match="'r2999'"):
        check_ends(EBNF, f"root ::= r0\n{chain}{names[-1]} ::= {names[-1]}")
