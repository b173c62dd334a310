"""Grammars across a prefill and a decode worker: the first token is constrained there, the rest
here, and a replay goes on in the same state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
from tests.workers.conftest import MODEL, Pair
from tests.workers.probe import Probe
from tokenizers import Tokenizer

from baton.protos.constraints import Grammar, GrammarKind, Thought
from baton.protos.types import SamplingParams

TOKENIZER = Tokenizer.from_file(str(Path(MODEL) / "tokenizer.json"))
PROMPT = TOKENIZER.encode("Write about a person, and then about another one.").ids
WANTED = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"enum": [7, 42]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMA = Grammar(kind=GrammarKind.JSON_SCHEMA, source=json.dumps(WANTED), whitespace=False)
SAMPLING = SamplingParams(temperature=0.9, seed=11, max_tokens=200)


def text_of(tokens: list[int]) -> str:
    return str(TOKENIZER.decode(tokens))


async def test_remote_local_and_replayed_answers_agree_and_validate(pair: Pair) -> None:
    thought = Thought(end_ids=(4,), open=True, budget=5)
    async with Probe(pair.decode_member) as gateway:
        for more in ({}, {"thought": thought}):
            handles = [
                gateway.submit(PROMPT, SAMPLING, prefill=targets, grammar=SCHEMA, **more)
                for targets in ([pair.prefill_member], [])
            ]
            answers = [await gateway.wait(handle) for handle in handles]
            remote, local = answers
            assert remote.tokens == local.tokens
            for answer in answers:
                assert answer.done is not None
                assert answer.done.finish_reason == "stop"
                assert answer.done.grammar_backend == "guidance"
                assert answer.done.num_reasoning_tokens == (5 if more else 0)
            assert remote.done is not None
            assert remote.done.prefilled_by == "prefill-0"
            jsonschema.validate(json.loads(text_of(remote.tokens[6 if more else 0 :])), WANTED)
            for done, targets in ((7, []), (3, [pair.prefill_member])):
                output = remote.tokens[:done]
                handle = gateway.submit(
                    PROMPT, SAMPLING, prefill=targets, grammar=SCHEMA, output=output, **more
                )
                assert (await gateway.wait(handle)).tokens == remote.tokens[done:]


async def test_bad_grammars_are_refused_once_and_by_name(pair: Pair) -> None:
    bad: list[tuple[Grammar, str]] = [
        (Grammar(kind=GrammarKind.REGEX, source="(", param="guided_regex"), "unclosed"),
        (Grammar(kind=GrammarKind.JSON_SCHEMA, source='{"uniqueItems": true}'), "uniqueItems"),
    ]
    async with Probe(pair.decode_member) as gateway:
        for grammar, reason in bad:
            for targets in ([pair.prefill_member], []):
                handle = gateway.submit(PROMPT, SAMPLING, prefill=targets, grammar=grammar)
                done: Any = (await gateway.wait(handle)).done
                assert (done.finish_reason, done.error_code) == ("error", "invalid_grammar")
                assert reason in done.error_message
                assert done.error_param == grammar.param
        handle = gateway.submit(PROMPT, SAMPLING, prefill=[pair.prefill_member])
        assert (await gateway.wait(handle)).tokens
