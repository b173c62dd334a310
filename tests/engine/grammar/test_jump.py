"""Tokens that a grammar leaves no choice about: taken without a step each, the same however the
engine runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import jsonschema
import pytest
from tests.engine.grammar.answering import (
    MODEL,
    Answer,
    ask,
    ended,
    make_engine,
    run,
    schema,
)
from tests.engine.parallel.ranks import ThreadRanks

from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.protos.constraints import Grammar, GrammarKind
from baton.protos.types import RequestOutput

FORM = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 6},
        "favourite_colour": {"enum": ["red", "green", "grey"]},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string", "maxLength": 6}},
            "required": ["street"],
            "additionalProperties": False,
        },
    },
    "required": ["first_name", "favourite_colour", "address"],
    "additionalProperties": False,
}
COMPACT = schema(FORM, whitespace=False)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    built = make_engine()
    yield built
    built.close()


def answers_of(engine: Engine, **sampling: object) -> dict[str, Answer]:
    requests = [ask(f"r{seed}", COMPACT, seed=seed, **sampling) for seed in range(4)]
    return run(engine, [*requests, ask("free", seed=9, max_tokens=12)])


def tokens_of(engine: Engine, **sampling: object) -> dict[str, list[int]]:
    return {name: answer.token_ids for name, answer in answers_of(engine, **sampling).items()}


def test_forced_tokens_take_no_step(engine: Engine) -> None:
    before = engine.statistics()
    answer = run(engine, [ask("one", COMPACT)])["one"]
    jsonschema.validate(json.loads(answer.text), FORM)
    after = engine.statistics()
    num_jumped = after.num_jumped_tokens - before.num_jumped_tokens
    num_steps = after.num_steps - before.num_steps
    assert num_jumped > len(answer.token_ids) // 2
    assert num_steps <= len(answer.token_ids) - num_jumped + 1


def test_the_tokens_are_those_that_masks_would_have_forced(engine: Engine) -> None:
    expected = tokens_of(engine)
    jumped = engine.statistics().num_jumped_tokens
    # Reported tokens, and those whose odds hang on what came before, are sampled one by one.
    reported = answers_of(engine, logprobs=1)
    assert {name: answer.token_ids for name, answer in reported.items()} == expected
    assert all(len(a.logprobs) == len(a.token_ids) for n, a in reported.items() if n != "free")
    tokens_of(engine, frequency_penalty=0.5)
    assert engine.statistics().num_jumped_tokens == jumped
    for changes in (
        {"overlap": True},
        {"num_blocks": 9, "expected_output_tokens": 0, "prefix_cache": False},
        {"num_blocks": 9, "expected_output_tokens": 0, "overlap": True},
        {"max_running": 5, "max_step_tokens": 6},
    ):
        other = make_engine(max_model_len=140, **changes)
        try:
            assert tokens_of(other) == expected, changes
            assert other.statistics().num_jumped_tokens
            assert bool(other.statistics().requests.num_preemptions) == ("num_blocks" in changes)
        finally:
            other.close()


def test_other_ranks_are_given_them(engine: Engine) -> None:
    config = EngineConfig(
        model_dir=str(MODEL), device="cpu", num_blocks=256, max_running=8, tensor_parallel_size=2
    )
    ranks = Engine(config, ranks=ThreadRanks())
    try:
        assert tokens_of(ranks) == tokens_of(engine)
        assert ranks.statistics().num_jumped_tokens
    finally:
        ranks.close()


def test_max_tokens_may_end_among_them(engine: Engine) -> None:
    whole = run(engine, [ask("whole", COMPACT)])["whole"].token_ids
    cuts = [ask(f"c{size}", COMPACT, max_tokens=size) for size in range(1, 12)]
    for name, answer in run(engine, cuts).items():
        assert answer.token_ids == whole[: int(name[1:])]
        assert answer.reason == "length"


def test_stop_ids_and_rests_are_never_skipped(engine: Engine) -> None:
    # Its whole text is forced, but for the first character; its end is sampled.
    grammar = Grammar(kind=GrammarKind.CHOICE, source='["a long way to go", "b"]')
    answers = run(engine, [ask(f"s{seed}", grammar, seed=seed, min_tokens=3) for seed in range(4)])
    for answer in answers.values():
        assert answer.reason == "stop"
        assert answer.text in ("a long way to go", "b")


def test_none_is_lost_behind_a_first_token_that_came_from_elsewhere(engine: Engine) -> None:
    grammar = Grammar(kind=GrammarKind.CHOICE, source='["a long way to go"]')
    whole = run(engine, [ask("whole", grammar)])["whole"].token_ids
    assert len(whole) > 3
    request = ask("moved", grammar, prompt="Its KV comes from another worker.")
    reservation = engine.reserve(request)
    assert reservation is not None
    first = RequestOutput(request_id="moved", token_ids=whole[:1])
    engine.receive("moved", reservation.epoch, first)
    moved = ended(engine, ["moved"])["moved"]
    assert moved.reason == "stop"
    # The end itself is the model's choice among several.
    assert moved.token_ids[:-1] == whole[1:-1]
