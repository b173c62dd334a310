"""Drives an engine on the shipped small model with grammars."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.protos.constraints import Grammar, GrammarKind, Thought
from baton.protos.types import GenerateRequest, RequestOutput, SamplingParams, TokenLogprob

MODEL = Path(__file__).resolve().parents[3] / "models" / "baton-tiny"
THINK, END_THINK = 3, 4
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def schema(value: Any, **more: Any) -> Grammar:
    return Grammar(kind=GrammarKind.JSON_SCHEMA, source=json.dumps(value), **more)


def make_engine(**changes: Any) -> Engine:
    settings: dict[str, Any] = {"num_blocks": 256, "max_running": 16, "self_check": True, **changes}
    return Engine(EngineConfig(model_dir=str(MODEL), device="cpu", **settings))


def ask(
    name: str,
    grammar: Grammar | None = None,
    thought: Thought | None = None,
    *,
    prompt: str = "Write about a person.",
    output: Sequence[int] = (),
    **sampling: Any,
) -> GenerateRequest:
    values = {"temperature": 0.8, "seed": 5, "max_tokens": 400, **sampling}
    return GenerateRequest(
        request_id=name,
        prompt_token_ids=tokenizer().encode(prompt).ids,
        output_token_ids=output,
        sampling=SamplingParams(**values),
        grammar=grammar,
        thought=thought,
    )


@dataclass
class Answer:
    """Everything that came for one request; `end` is its last output."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: RequestOutput | None = None

    @property
    def text(self) -> str:
        """Without special tokens, which eos is."""
        return str(tokenizer().decode(self.token_ids))

    @property
    def reason(self) -> str:
        assert self.end is not None
        assert self.end.finish_reason is not None
        return self.end.finish_reason.value


def run(
    engine: Engine, requests: Sequence[GenerateRequest], hang_s: float = 120.0
) -> dict[str, Answer]:
    """Adds all of them and steps until they have ended. Hangs end in a failure."""
    for request in requests:
        engine.add(request)
    return ended(engine, [request.request_id for request in requests], hang_s)


def ended(engine: Engine, names: Sequence[str], hang_s: float = 120.0) -> dict[str, Answer]:
    """Steps until these have ended, which are all that the engine has."""
    answers = {name: Answer() for name in names}
    give_up = time.monotonic() + hang_s
    while any(answer.end is None for answer in answers.values()):
        assert time.monotonic() < give_up, "no end of it"
        if not engine.has_work():
            assert engine.num_compiling, "nothing to do, but not all have ended"
            time.sleep(0.002)
            continue
        for output in engine.step().outputs:
            answer = answers[output.request_id]
            assert answer.end is None
            answer.token_ids += output.token_ids
            answer.logprobs += output.logprobs or ()
            if output.finish_reason is not None:
                answer.end = output
    engine.check_integrity()
    return answers
