"""POST /v1/chat/completions: sequences to OpenAI's chat objects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from baton.gateway.answers import (
    DONE_EVENT,
    Transcript,
    chat_logprob,
    prompt_logprob,
    usage,
)
from baton.gateway.call import Call, Job
from baton.gateway.choice import Choice, Delta
from baton.gateway.openai_schema import ChatBody
from baton.gateway.reply import CallDelta
from baton.gateway.tokenizer import Tokenizer
from baton.protos.types import TokenLogprob

_encode = msgspec.json.encode


class ChatAnswer:
    """Formats one chat request's answer. Deltas that are text alone are joined from prebuilt
    bytes.
    """

    def __init__(self, body: ChatBody, call: Call, tokenizer: Tokenizer, model: str) -> None:
        self.call = call
        self.stream = bool(body.stream)
        self._body = body
        self._tokenizer = tokenizer
        self._job: Job | None = None
        self._include_usage = body.stream_options is not None and body.stream_options.include_usage
        self._head = {"id": call.request_id, "created": int(time.time()), "model": model}
        chunk = {**self._head, "object": "chat.completion.chunk"}
        self._chunk_start = b"data: " + _encode(chunk)[:-1] + b',"choices":['
        self._chunk_end = (b'],"usage":null}' if self._include_usage else b"]}") + b"\n\n"
        self._begun: set[int] = set()
        # Everything around a delta's text, by choice, for deltas that have nothing else to say.
        self._before_text = [
            self._chunk_start + b'{"index":%d,"delta":{"content":' % index
            for index in range(call.n)
        ]
        self._after_text = b'},"logprobs":null,"finish_reason":null}' + self._chunk_end
        self._text_only = not (body.logprobs or body.return_token_ids)

    def prepared(self, job: Job) -> None:
        self._job = job

    def delta(self, choice: Choice, delta: Delta) -> bytes:
        opening = b"" if choice.index in self._begun else self._opening(choice)
        plain = not (delta.reasoning or delta.calls)
        if self._text_only and plain and delta.finish_reason is None:
            if not delta.text:
                return opening
            text = _encode(delta.text)
            return opening + self._before_text[choice.index] + text + self._after_text
        return opening + self._full(choice, delta)

    def closing(self, choices: Sequence[Choice]) -> bytes:
        if not self._include_usage:
            return DONE_EVENT
        assert self._job is not None
        chunk = {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": usage(self._job, choices),
        }
        return b"data: " + _encode(chunk) + b"\n\n" + DONE_EVENT

    def whole(self, choices: Sequence[Choice], transcripts: Sequence[Transcript]) -> bytes:
        assert self._job is not None
        document: dict[str, Any] = {
            **self._head,
            "object": "chat.completion",
            "choices": [
                self._whole_choice(choice, transcript)
                for choice, transcript in zip(choices, transcripts, strict=True)
            ],
            "usage": usage(self._job, choices),
        }
        if self._body.return_token_ids:
            document["prompt_token_ids"] = self._job.prompts[0]
        if self._body.prompt_logprobs is not None:
            document["prompt_logprobs"] = [
                prompt_logprob(self._tokenizer, entry) for entry in choices[0].prompt_logprobs or []
            ]
        return _encode(document)

    def _opening(self, choice: Choice) -> bytes:
        """The chunk that names the role, before a choice's first text."""
        self._begun.add(choice.index)
        fields: dict[str, Any] = {
            "index": choice.index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        if self._body.return_token_ids and choice.index == 0:
            assert self._job is not None
            fields["prompt_token_ids"] = self._job.prompts[0]
        return self._chunk_start + _encode(fields) + self._chunk_end

    def _full(self, choice: Choice, delta: Delta) -> bytes:
        fields: dict[str, Any] = {
            "index": choice.index,
            "delta": _delta_fields(delta),
            "logprobs": self._logprobs(delta.logprobs),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None and choice.grammar_backend:
            fields["grammar_backend"] = choice.grammar_backend
        if self._body.return_token_ids:
            fields["token_ids"] = delta.token_ids
        return self._chunk_start + _encode(fields) + self._chunk_end

    def _whole_choice(self, choice: Choice, transcript: Transcript) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "index": choice.index,
            "message": _message(transcript),
            "logprobs": self._logprobs(transcript.logprobs),
            "finish_reason": transcript.finish_reason,
        }
        if choice.grammar_backend:
            fields["grammar_backend"] = choice.grammar_backend
        if self._body.return_token_ids:
            fields["token_ids"] = transcript.token_ids
        return fields

    def _logprobs(self, entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        if not self._body.logprobs or entries is None:
            return None
        content = [chat_logprob(self._tokenizer, entry) for entry in entries]
        return {"content": content, "refusal": None}


def _delta_fields(delta: Delta) -> dict[str, Any]:
    """What a chunk's delta says."""
    fields: dict[str, Any] = {}
    if delta.reasoning:
        fields["reasoning_content"] = fields["reasoning"] = delta.reasoning
    if delta.text:
        fields["content"] = delta.text
    if delta.calls:
        fields["tool_calls"] = [_call_delta(call) for call in delta.calls]
    return fields


def _call_delta(call: CallDelta) -> dict[str, Any]:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _message(transcript: Transcript) -> dict[str, Any]:
    """The message of a whole answer; its content is null where it said none beside calls or a
    thought.
    """
    reasoning = "".join(transcript.reasoning)
    calls = transcript.tool_calls()
    content = transcript.text
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if not content and (calls or reasoning) else content,
        "refusal": None,
    }
    if reasoning:
        message["reasoning_content"] = message["reasoning"] = reasoning
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    return message
