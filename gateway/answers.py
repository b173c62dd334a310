"""What chat and completions answers share: transcripts, usage, logprob entries, sampling of a
body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from baton.gateway.call import Call, Job
from baton.gateway.choice import Choice, Delta
from baton.gateway.openai_schema import GenerationBody
from baton.gateway.reply import CallDelta
from baton.gateway.tokenizer import Tokenizer
from baton.protos.types import SamplingParams, TokenLogprob

# JSON has no minus infinity; OpenAI reports impossible tokens with this.
MIN_LOGPROB = -9999.0

DONE_EVENT = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Transcript:
    """Everything that one sequence said."""

    parts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[CallDelta] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, delta: Delta) -> None:
        self.parts.append(delta.text)
        self.reasoning.append(delta.reasoning)
        self.calls += delta.calls
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def tool_calls(self) -> list[CallDelta]:
        """Each call with all of its arguments."""
        whole: dict[int, CallDelta] = {}
        arguments: dict[int, list[str]] = {}
        for piece in self.calls:
            whole.setdefault(piece.index, piece)
            arguments.setdefault(piece.index, []).append(piece.arguments)
        return [replace(call, arguments="".join(arguments[i])) for i, call in whole.items()]


class Answer(Protocol):
    """One request's answer in the words of its endpoint. `delta` is called once per step and
    choice.
    """

    @property
    def call(self) -> Call: ...
    @property
    def stream(self) -> bool: ...
    def prepared(self, job: Job) -> None:
        """The call was tokenized; called before anything below."""

    def delta(self, choice: Choice, delta: Delta) -> bytes:
        """Server-sent events for it; empty if there is nothing to say yet."""

    def closing(self, choices: Sequence[Choice]) -> bytes:
        """The last events of the stream."""

    def whole(self, choices: Sequence[Choice], transcripts: Sequence[Transcript]) -> bytes:
        """The JSON document of an answer that is not streamed."""


async def for_each(choices: Sequence[Choice], work: Callable[[Choice], Awaitable[None]]) -> None:
    """Runs `work` on all choices at once; the first error ends the others and is raised."""
    if len(choices) == 1:
        return await work(choices[0])

    async def run(choice: Choice) -> None:
        await work(choice)

    try:
        async with asyncio.TaskGroup() as group:
            for choice in choices:
                group.create_task(run(choice))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors


def usage(job: Job, choices: Sequence[Choice]) -> dict[str, Any]:
    """OpenAI's usage object; a prompt counts once, whatever n is."""
    num_prompt = job.num_prompt_tokens
    num_completion = 0 if job.prompt_only else sum(choice.num_tokens for choice in choices)
    num_reasoning = sum(choice.num_reasoning_tokens for choice in choices)
    num_cached = sum(choice.num_cached_tokens for choice in choices[:: job.call.n])
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": num_cached},
        "completion_tokens_details": {"reasoning_tokens": num_reasoning},
    }


def sampling_params(body: GenerationBody, *, logprobs: int | None) -> SamplingParams:
    """A body's sampling, with OpenAI's defaults; seed and max_tokens are the service's to fill
    in.
    """
    bias = body.logit_bias or {}
    return SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(0, body.top_k or 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=tuple((int(token_id), value) for token_id, value in bias.items()),
        min_tokens=body.min_tokens,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
    )


def chat_logprob(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, Any]:
    """One element of a chat choice's logprobs.content."""
    named = _named(tokenizer, entry.token_id, entry.logprob)
    top = [_named(tokenizer, token_id, logprob) for token_id, logprob in entry.top]
    return {**named, "top_logprobs": top}


def prompt_logprob(tokenizer: Tokenizer, entry: TokenLogprob | None) -> dict[str, Any] | None:
    """One element of `prompt_logprobs`, keyed by token id as vLLM does; None for the first
    token.
    """
    if entry is None:
        return None
    ranked = [(token_id, logprob, i + 1) for i, (token_id, logprob) in enumerate(entry.top)]
    if entry.token_id not in {token_id for token_id, _, _ in ranked}:
        ranked.append((entry.token_id, entry.logprob, entry.rank))
    return {
        str(token_id): {
            "logprob": max(logprob, MIN_LOGPROB),
            "rank": rank,
            "decoded_token": tokenizer.token_text(token_id),
        }
        for token_id, logprob, rank in ranked
    }


def _named(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": max(logprob, MIN_LOGPROB),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }
