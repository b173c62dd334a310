"""Whatever a compiled schema lets through to its end is valid; no grammar text hangs or crashes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.schema_coverage import Auto, judge
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from tests.engine.grammar.answering import MODEL, schema, tokenizer
from tests.engine.grammar.schemas import schemas

from baton.engine.grammar.choose import compile_grammar
from baton.engine.grammar.vocabulary import Vocabulary
from baton.protos.constraints import Grammar, GrammarKind
from baton.protos.errors import GrammarError

VOCAB, EOS = 1024, 2


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(str(MODEL), VOCAB, (EOS,))


def write(grammar: Grammar, seed: int, limit: int = 120) -> str | None:
    """A text by random allowed tokens, those that close something more often; None: not ended."""
    compiled = compile_grammar(grammar, vocabulary(), limit_s=10.0)
    matcher, rng = compiled.matcher(), random.Random(seed)
    closers = [tokenizer().token_to_id(text) for text in ('"', "}", "]", '"}', "0", "1", "]}")]
    bitmask = np.zeros((1, VOCAB // 32), dtype=np.int32)
    said: list[int] = []
    for _ in range(limit):
        compiled.filler.fill([matcher.native], bitmask, [0])
        allowed = np.flatnonzero(np.unpackbits(bitmask.view(np.uint8), bitorder="little")).tolist()
        assert allowed, matcher.error()
        if EOS in allowed and (len(allowed) == 1 or rng.random() < 0.4):
            return str(tokenizer().decode(said))
        closing = [token for token in closers if token in allowed]
        pick = closing if closing and rng.random() < 0.5 else allowed
        token = rng.choice([one for one in pick if one != EOS] or pick)
        if not matcher.accept(token):
            # It may become too complex on the way, but then it says so.
            assert matcher.error()
            return None
        said.append(token)
    return None


@settings(max_examples=60, deadline=None)
@given(schemas, st.integers(0, 2**32))
def test_every_finished_document_is_valid(wanted: Any, seed: int) -> None:
    try:
        text = write(schema(wanted), seed)
    except GrammarError:
        return
    if text is not None:
        Draft7Validator(wanted).validate(json.loads(text))


texts = st.text("ab()[]{}|*+?\\^$-.:=\"'/<>#%@,0123 \n", max_size=40) | st.text(max_size=20)
grammars = st.builds(
    Grammar,
    kind=st.sampled_from(
        [GrammarKind.REGEX, GrammarKind.LARK, GrammarKind.CHOICE, GrammarKind.JSON_SCHEMA]
    ),
    source=texts | texts.map(lambda text: f"start: {text}") | texts.map(lambda t: json.dumps([t])),
    whitespace=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(grammars)
def test_any_text_is_compiled_or_refused(grammar: Grammar) -> None:
    with contextlib.suppress(GrammarError):
        write(grammar, 0, limit=10)


def nested(depth: int) -> dict[str, Any]:
    return (
        {"anyOf": [nested(depth - 1), {"items": nested(depth - 1)}]} if depth else {"type": "null"}
    )


BAD = [
    (GrammarKind.REGEX, "(" * 90 + ")" * 90),
    (GrammarKind.REGEX, "((a{1,1000}){1,1000}){1,1000}"),
    (GrammarKind.REGEX, "(a|aa)+" * 2000),
    (GrammarKind.REGEX, "(x+x+)+y" * 50),
    (GrammarKind.LARK, "start: a\n" + "\n".join(f'a: a a | "x{i}"' for i in range(300))),
    (GrammarKind.LARK, "start: " + " ".join(["a?"] * 5000) + '\na: "x"'),
    (
        GrammarKind.JSON_SCHEMA,
        json.dumps(
            {
                "allOf": [
                    {"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(24)
                ]
            }
        ),
    ),
    (
        GrammarKind.JSON_SCHEMA,
        json.dumps({"oneOf": [{"properties": {f"p{i}": {"type": "integer"}}} for i in range(40)]}),
    ),
    (GrammarKind.JSON_SCHEMA, json.dumps(nested(12))),
    (GrammarKind.JSON_SCHEMA, json.dumps({"type": "string", "minLength": 10**9})),
    (GrammarKind.JSON_SCHEMA, json.dumps({"type": "array", "minItems": 10**9})),
    (GrammarKind.JSON_SCHEMA, '{"not":' * 90 + "{}" + "}" * 90),
    (GrammarKind.JSON_SCHEMA, json.dumps({"pattern": "(a*)*(b*)*" * 200})),
    (GrammarKind.JSON_SCHEMA, json.dumps({"enum": [f"value {i}" for i in range(30000)]})),
    (GrammarKind.CHOICE, json.dumps(["a" * i for i in range(1000)])),
]


@pytest.mark.parametrize(("kind", "source"), BAD)
def test_heavy_grammars_end_in_bounded_time(kind: GrammarKind, source: str) -> None:
    started_s = time.monotonic()
    with contextlib.suppress(GrammarError):
        write(Grammar(kind=kind, source=source), 0, limit=20)
    # A hang limit; a free machine needs a second for the worst of them.
    assert time.monotonic() - started_s < 60


@pytest.mark.skipif(
    not os.environ.get("BATON_SCHEMA_SAMPLE"),
    reason="BATON_SCHEMA_SAMPLE names no sample of MaskBench, whose schemas have no licence",
)
def test_real_schemas() -> None:
    """At least nine in ten are right; none is wrong."""
    auto, verdicts = Auto(), Counter[str]()
    with Path(os.environ["BATON_SCHEMA_SAMPLE"]).open(encoding="utf-8") as lines:
        for line in lines:
            one = json.loads(line)
            try:
                verdicts[judge(auto.compile(one["schema"]), one["tests"])] += 1
            except GrammarError:
                verdicts["refused"] += 1
    assert verdicts["wrong"] == 0
    assert verdicts["right"] >= 0.9 * verdicts.total()


def test_a_matcher_goes_forth_and_back() -> None:
    """The backend interface's contract, on a text that is forced but for one word."""
    source = json.dumps(
        {
            "type": "object",
            "properties": {"n": {"enum": ["red", "blue"]}},
            "required": ["n"],
            "additionalProperties": False,
        }
    )
    grammar = Grammar(kind=GrammarKind.JSON_SCHEMA, source=source, whitespace=False)
    matcher = compile_grammar(grammar, vocabulary(), limit_s=10.0).matcher()
    said: list[int] = []
    while not matcher.can_end():
        forced = list(matcher.forced()) or [tokenizer().token_to_id("b")]
        for token in forced:
            assert matcher.accept(token)
        said += forced
    assert json.loads(tokenizer().decode(said)) == {"n": "blue"}
    assert not matcher.accept(said[0])
    matcher.rollback(len(said))
    assert not matcher.can_end()
    assert all(matcher.accept(token) for token in said)
    assert matcher.can_end()
    assert matcher.error() == ""
