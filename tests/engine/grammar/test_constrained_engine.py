"""Grammars and thoughts through the whole engine, on the shipped small model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import jsonschema
import pytest
from tests.engine.grammar.answering import (
    END_THINK,
    PERSON,
    THINK,
    ask,
    make_engine,
    run,
    schema,
    tokenizer,
)

from baton.engine.engine import Engine
from baton.protos.constraints import Grammar, GrammarBackend, GrammarKind, Thought
from baton.protos.errors import GrammarError, InvalidRequestError

OPEN = Thought(end_ids=(END_THINK,), start_ids=(THINK,), open=True)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    built = make_engine()
    yield built
    built.close()


def test_answers_validate_whatever_the_sampling(engine: Engine) -> None:
    person = schema(PERSON)
    requests = [ask(f"s{seed}", person, seed=seed, temperature=1.2) for seed in range(6)]
    requests += [
        ask("greedy", person, temperature=0.0),
        ask("top", person, top_k=3, top_p=0.9, min_p=0.05),
        ask("penalty", person, repetition_penalty=1.3, presence_penalty=1.0),
        ask("biased", person, logit_bias=((500, 100.0), (90, -100.0))),
        ask("compact", schema(PERSON, whitespace=False)),
    ]
    answers = run(engine, requests)
    for name, answer in answers.items():
        assert answer.reason == "stop", name
        jsonschema.validate(json.loads(answer.text), PERSON)
        assert answer.end is not None
        assert answer.end.grammar_backend == "guidance"
    compact = answers["compact"].text
    assert json.dumps(json.loads(compact), separators=(",", ":"), ensure_ascii=False) == compact


def test_free_rows_beside_constrained_ones_are_as_they_were(engine: Engine) -> None:
    free = ask("free", max_tokens=64)
    alone = run(engine, [free])["free"].token_ids
    both = run(engine, [free, ask("bound", schema(PERSON), seed=9)])
    assert both["free"].token_ids == alone


@pytest.mark.parametrize(
    ("kind", "source", "pattern"),
    [
        (GrammarKind.CHOICE, '["red", "dark blue", "\\u00e9\\"{"]', 'red|dark blue|é"{'),
        (GrammarKind.REGEX, r"[a-c]{3,5}-\d+x", r"[a-c]{3,5}-[0-9]+x"),
        (GrammarKind.LARK, 'start: "<" /[a-z]{1,4}/ ">"', "<[a-z]{1,4}>"),
        (GrammarKind.JSON_OBJECT, "", r"(?s)\{.*\}"),
    ],
)
def test_kinds(engine: Engine, kind: GrammarKind, source: str, pattern: str) -> None:
    # What could go on for ever is ended by the budget, not by the model.
    grammar = Grammar(kind=kind, source=source)
    answer = run(engine, [ask("one", grammar, max_tokens=200, temperature=1.0)])["one"]
    if answer.reason == "stop":
        assert re.fullmatch(pattern, answer.text), answer.text
    else:
        assert kind in (GrammarKind.JSON_OBJECT, GrammarKind.REGEX)


def test_the_grammar_holds_from_after_the_thought(engine: Engine) -> None:
    free = Thought(end_ids=(END_THINK,), start_ids=(THINK,))
    budget = Thought(end_ids=(END_THINK,), open=True, budget=6)
    answers = run(
        engine,
        [
            ask("budget", schema(PERSON), budget, seed=1),
            ask("none", schema(PERSON), Thought(end_ids=(END_THINK,), open=True, budget=0)),
            ask("may", schema(PERSON), free, prompt="<|im_start|>user\nhi<|im_end|>\n"),
            ask("long", None, budget, max_tokens=20),
            ask(
                "message",
                None,
                Thought(end_ids=(END_THINK,), open=True, budget=2, close_ids=(70, 71, END_THINK)),
                max_tokens=9,
            ),
        ],
    )
    for name, count in (("budget", 6), ("none", 0)):
        answer = answers[name]
        end = answer.token_ids.index(END_THINK)
        assert end == count
        assert answer.end is not None
        assert answer.end.num_reasoning_tokens == count
        jsonschema.validate(json.loads(tokenizer().decode(answer.token_ids[end + 1 :])), PERSON)
    may = answers["may"]
    jsonschema.validate(json.loads(may.text.split("</think>")[-1]), PERSON)
    assert answers["long"].token_ids.index(END_THINK) == 6
    assert answers["message"].token_ids[2:5] == [70, 71, END_THINK]
    end = answers["message"].end
    assert end is not None
    assert end.num_reasoning_tokens == 4


def test_a_thought_without_a_budget_is_only_counted(engine: Engine) -> None:
    free = run(engine, [ask("free", max_tokens=12)])["free"]
    counted = run(engine, [ask("free", None, OPEN, max_tokens=12)])["free"]
    assert counted.token_ids == free.token_ids
    assert counted.end is not None
    assert counted.end.num_reasoning_tokens == 12


def test_a_replay_goes_on_with_the_same_tokens(engine: Engine) -> None:
    thought = Thought(end_ids=(END_THINK,), open=True, budget=4)
    whole = run(engine, [ask("whole", schema(PERSON), thought)])["whole"].token_ids
    for done in (1, 4, 5, 9, len(whole) - 1, len(whole)):
        rest = run(engine, [ask("rest", schema(PERSON), thought, output=whole[:done])])["rest"]
        assert rest.token_ids == whole[done:]
        assert rest.reason == "stop"
        assert rest.end is not None
        assert rest.end.num_reasoning_tokens == 4


def test_the_tokens_do_not_depend_on_preemption_or_overlap(engine: Engine) -> None:
    requests = [
        ask(f"r{seed}", schema(PERSON), OPEN if seed % 2 else None, seed=seed, max_tokens=100)
        for seed in range(6)
    ]
    expected = {name: a.token_ids for name, a in run(engine, requests).items()}
    for changes in (
        {"overlap": True},
        {"num_blocks": 14, "expected_output_tokens": 0},
        {"num_blocks": 14, "expected_output_tokens": 0, "overlap": True},
    ):
        other = make_engine(max_model_len=200, **changes)
        try:
            found = {name: a.token_ids for name, a in run(other, requests).items()}
            assert found == expected, changes
            if "num_blocks" in changes:
                assert other.statistics().requests.num_preemptions
        finally:
            other.close()


def test_ends_come_where_the_grammar_may_end(engine: Engine) -> None:
    digits = Grammar(kind=GrammarKind.REGEX, source="[0-9]{2,30}")
    stop = tokenizer().token_to_id("7")
    answers = run(
        engine,
        [
            ask("least", digits, min_tokens=12, temperature=1.0),
            ask("ignore", Grammar(kind=GrammarKind.REGEX, source="[0-9]{6}"), ignore_eos=True),
            ask("early", Grammar(kind=GrammarKind.REGEX, source="[0-9]{3}"), min_tokens=50),
            ask("stop", Grammar(kind=GrammarKind.REGEX, source="7[0-9]*"), stop_token_ids=(stop,)),
        ],
    )
    assert len(answers["least"].token_ids) >= 12
    assert re.fullmatch("[0-9]{6}", answers["ignore"].text)
    assert re.fullmatch("[0-9]{3}", answers["early"].text)
    assert answers["stop"].token_ids == [stop]
    assert {answer.reason for answer in answers.values()} == {"stop"}


def test_logprobs_are_the_models_own(engine: Engine) -> None:
    choice = Grammar(kind=GrammarKind.CHOICE, source='["zebra", "quartz"]')
    bound = run(engine, [ask("bound", choice, logprobs=3)])["bound"]
    free = run(engine, [ask("free", logprobs=3)])["free"]
    # Before the mask: the best tokens are what an unconstrained answer would begin with.
    assert bound.logprobs[0].top == free.logprobs[0].top
    assert bound.logprobs[0].rank > 3


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar(kind=GrammarKind.REGEX, source="("), "unclosed group"),
        (Grammar(kind=GrammarKind.REGEX, source="a(?=b)"), "look-ahead"),
        (Grammar(kind=GrammarKind.LARK, source="start: nothing"), "unknown name"),
        (Grammar(kind=GrammarKind.LARK, source="start: start"), "'start' can never end"),
        (Grammar(kind=GrammarKind.JSON_SCHEMA, source="{"), "not JSON"),
        (Grammar(kind=GrammarKind.JSON_SCHEMA, source="[]"), "must be an object"),
        (Grammar(kind=GrammarKind.JSON_SCHEMA, source='{"a": NaN}'), "NaN"),
        (Grammar(kind=GrammarKind.JSON_SCHEMA, source="[" * 5000), "5000 deep"),
        (Grammar(kind=GrammarKind.JSON_SCHEMA, source="false"), "no output can match"),
        (Grammar(kind=GrammarKind.JSON_SCHEMA, source='{"$ref": "#"}'), "no base"),
        (Grammar(kind=GrammarKind.CHOICE, source="[]"), "at least one"),
        (Grammar(kind=GrammarKind.CHOICE, source="[1]"), "must be a string"),
        (Grammar(kind=GrammarKind.LARK, source="", param="guided_grammar"), "is empty"),
        (
            Grammar(kind=GrammarKind.EBNF, source="root", backend=GrammarBackend.GUIDANCE),
            "does not read",
        ),
    ],
)
def test_refusals_say_why_and_name_the_field(engine: Engine, grammar: Grammar, reason: str) -> None:
    """At once where it is known at once, else as the request's only output."""
    try:
        answer = run(engine, [ask("bad", grammar)])["bad"]
    except GrammarError as refused:
        error: Exception | None = refused
    else:
        assert answer.end is not None
        error = answer.end.error
        assert answer.token_ids == []
        assert answer.reason == "error"
    assert isinstance(error, GrammarError)
    assert reason in error.message
    assert error.param == grammar.param
    # The second time it is known, and refused where it is added.
    with pytest.raises(GrammarError, match=re.escape(reason)):
        engine.add(ask("again", grammar))
    engine.check_integrity()


def test_bad_thoughts_are_refused(engine: Engine) -> None:
    for thought, param in (
        (Thought(end_ids=()), "end_ids"),
        (Thought(end_ids=(4,)), "start_ids"),
        (Thought(end_ids=(4,), open=True, budget=-1), "thinking_token_budget"),
        (Thought(end_ids=(4,), open=True, close_ids=(5,)), "close_ids"),
        (Thought(end_ids=(4000,), open=True), "end_ids"),
    ):
        with pytest.raises(InvalidRequestError) as refused:
            engine.add(ask("bad", None, thought))
        assert refused.value.param == param


def test_waiting_for_a_grammar_delays_nobody_and_can_be_aborted(engine: Engine) -> None:
    huge = schema({"enum": [f"word number {i}" for i in range(20000)]})
    engine.add(ask("waits", huge))
    assert engine.num_compiling == 1
    assert run(engine, [ask("free", max_tokens=4)])["free"].reason == "length"
    assert engine.abort("waits")
    assert engine.num_compiling == 0
    assert not engine.has_work()
    engine.check_integrity()
    statistics = engine.statistics().grammars
    assert statistics.num_hits > 0
    assert statistics.num_cached <= 256
