"""POST /v1/completions: a body to a Call, and sequences to OpenAI's text completion objects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from baton.gateway.answers import (
    DONE_EVENT,
    MIN_LOGPROB,
    Transcript,
    prompt_logprob,
    sampling_params,
    usage,
)
from baton.gateway.call import Call, Job, Prompt, TextPrompt, TokenPrompt
from baton.gateway.choice import Choice, Delta
from baton.gateway.detokenize import IncrementalText
from baton.gateway.openai_schema import CompletionBody
from baton.gateway.tokenizer import Tokenizer
from baton.protos.types import TokenLogprob

_encode = msgspec.json.encode


def completion_call(body: CompletionBody, request_id: str) -> Call:
    """What the service is to do for this body."""
    sampling = sampling_params(body, logprobs=body.logprobs)
    if body.echo and body.logprobs is not None:
        # The echoed tokens are reported with as many alternatives as the new ones.
        wanted = max(body.logprobs, body.prompt_logprobs or 0)
        sampling = replace(sampling, prompt_logprobs=wanted)
    return Call(
        request_id=request_id,
        prompts=tuple(_prompt(entry, body) for entry in body.prompt),
        sampling=sampling,
        model=body.model,
        n=body.n or 1,
        max_tokens=body.max_tokens,
        seed=body.seed,
        stop=body.stop,
        keep_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
        priority=body.priority,
        cache_salt=body.cache_salt or "",
        grammar=body.output_grammar(),
    )


def _prompt(entry: str | list[int], body: CompletionBody) -> Prompt:
    if isinstance(entry, str):
        return TextPrompt(text=entry, add_special_tokens=body.add_special_tokens is not False)
    return TokenPrompt(token_ids=entry)


class CompletionAnswer:
    """Formats one completion request's answer; choice i belongs to prompt i // n."""

    def __init__(self, body: CompletionBody, call: Call, tokenizer: Tokenizer, model: str) -> None:
        self.call = call
        self.stream = bool(body.stream)
        self._body = body
        self._tokenizer = tokenizer
        self._job: Job | None = None
        self._include_usage = body.stream_options is not None and body.stream_options.include_usage
        self._head = {
            "id": call.request_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._chunk_start = b"data: " + _encode(self._head)[:-1] + b',"choices":['
        self._chunk_end = b"]}\n\n"
        self._logprobs: dict[int, CompletionLogprobs] = {}
        self._begun: set[int] = set()
        self._text_only = body.logprobs is None and not body.return_token_ids

    def prepared(self, job: Job) -> None:
        self._job = job

    def delta(self, choice: Choice, delta: Delta) -> bytes:
        opening = b"" if choice.index in self._begun else self._opening(choice)
        if self._text_only and delta.finish_reason is None:
            if not delta.text:
                return opening
            start = self._chunk_start + b'{"index":%d,"text":' % choice.index
            end = b',"logprobs":null,"finish_reason":null}' + self._chunk_end
            return opening + start + _encode(delta.text) + end
        transcript = Transcript()
        transcript.add(delta)
        return opening + self._chunk(self._choice(choice, transcript, with_prompt=False))

    def closing(self, choices: Sequence[Choice]) -> bytes:
        if not self._include_usage:
            return DONE_EVENT
        chunk = {**self._head, "choices": [], "usage": usage(self._prepared, choices)}
        return b"data: " + _encode(chunk) + b"\n\n" + DONE_EVENT

    def whole(self, choices: Sequence[Choice], transcripts: Sequence[Transcript]) -> bytes:
        document = {
            **self._head,
            "choices": [
                self._choice(choice, transcript, with_prompt=True)
                for choice, transcript in zip(choices, transcripts, strict=True)
            ],
            "usage": usage(self._prepared, choices),
        }
        return _encode(document)

    @property
    def _prepared(self) -> Job:
        assert self._job is not None
        return self._job

    def _opening(self, choice: Choice) -> bytes:
        """The echoed prompt, before a choice's first text."""
        self._begun.add(choice.index)
        if not self._body.echo and not self._body.return_token_ids:
            return b""
        fields = self._choice(choice, Transcript(), with_prompt=True)
        return self._chunk(fields)

    def _chunk(self, fields: dict[str, Any]) -> bytes:
        return self._chunk_start + _encode(fields) + self._chunk_end

    def _choice(
        self, choice: Choice, transcript: Transcript, *, with_prompt: bool
    ) -> dict[str, Any]:
        echoed = self._echoed(choice) if with_prompt and self._body.echo else ""
        dropped = self._prepared.prompt_only
        fields: dict[str, Any] = {
            "index": choice.index,
            "text": echoed if dropped else echoed + transcript.text,
            "logprobs": self._choice_logprobs(choice, transcript, with_prompt=with_prompt),
            "finish_reason": _finish_reason(transcript, dropped=dropped),
        }
        if transcript.finish_reason is not None and choice.grammar_backend:
            fields["grammar_backend"] = choice.grammar_backend
        if self._body.return_token_ids:
            fields["token_ids"] = [] if dropped else transcript.token_ids
            if with_prompt:
                fields["prompt_token_ids"] = self._prompt_ids(choice)
        if with_prompt and self._body.prompt_logprobs is not None:
            fields["prompt_logprobs"] = [
                prompt_logprob(self._tokenizer, entry) for entry in choice.prompt_logprobs or []
            ]
        return fields

    def _choice_logprobs(
        self, choice: Choice, transcript: Transcript, *, with_prompt: bool
    ) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        if choice.index not in self._logprobs:
            text = self._tokenizer.incremental_text(
                skip_special_tokens=self._body.skip_special_tokens
            )
            self._logprobs[choice.index] = CompletionLogprobs(self._tokenizer, text)
        columns = self._logprobs[choice.index]
        if with_prompt and self._body.echo:
            columns.add_prompt(self._prompt_ids(choice), choice.prompt_logprobs or [])
        if not self._prepared.prompt_only:
            columns.add(transcript.logprobs)
        return columns.take()

    def _prompt_ids(self, choice: Choice) -> list[int]:
        return self._prepared.prompts[choice.index // self.call.n]

    def _echoed(self, choice: Choice) -> str:
        entry = self._body.prompt[choice.index // self.call.n]
        return entry if isinstance(entry, str) else self._tokenizer.decode(entry)


def _finish_reason(transcript: Transcript, *, dropped: bool) -> str | None:
    # The one token of a prompt-only call may be an eos, but its answer ended at max_tokens.
    return "length" if dropped and transcript.finish_reason else transcript.finish_reason


class CompletionLogprobs:
    """The four columns of a completion's logprobs; `text_offset` counts characters of the choice's
    text.
    """

    def __init__(self, tokenizer: Tokenizer, text: IncrementalText) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self._offset = 0
        self._columns: dict[str, list[Any]] = _empty_columns()

    def add_prompt(self, token_ids: Sequence[int], entries: Sequence[TokenLogprob | None]) -> None:
        """The echoed prompt, whose special tokens are in the text."""
        text = self._tokenizer.incremental_text(skip_special_tokens=False)
        for token_id, entry in zip(token_ids, entries, strict=True):
            self._add(token_id, entry, text)

    def add(self, entries: Sequence[TokenLogprob]) -> None:
        for entry in entries:
            self._add(entry.token_id, entry, self._text)

    def take(self) -> dict[str, list[Any]]:
        """What was added since the last time."""
        columns, self._columns = self._columns, _empty_columns()
        return columns

    def _add(self, token_id: int, entry: TokenLogprob | None, text: IncrementalText) -> None:
        columns, name = self._columns, self._tokenizer.token_text
        columns["tokens"].append(name(token_id))
        columns["text_offset"].append(self._offset)
        self._offset += len(text.push((token_id,)))
        if entry is None:
            columns["token_logprobs"].append(None)
            columns["top_logprobs"].append(None)
            return
        columns["token_logprobs"].append(max(entry.logprob, MIN_LOGPROB))
        top = {name(top_id): max(logprob, MIN_LOGPROB) for top_id, logprob in entry.top}
        top.setdefault(name(token_id), max(entry.logprob, MIN_LOGPROB))
        columns["top_logprobs"].append(top)


def _empty_columns() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
