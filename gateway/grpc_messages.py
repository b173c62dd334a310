"""public.proto to and from what the core speaks."""

from __future__ import annotations

import json
from collections.abc import Sequence

from baton.gateway.call import Call, ChatPrompt, Prompt, TextPrompt, TokenPrompt
from baton.gateway.choice import Choice
from baton.gateway.openai_schema import MAX_LOGPROBS, MAX_STOPS
from baton.gateway.tokenizer import Tokenizer
from baton.protos import public_pb2 as pb
from baton.protos.errors import InvalidRequestError
from baton.protos.types import SamplingParams, TokenLogprob

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_ROLES["tool"] = "tool"
_DEFAULTS = SamplingParams()


def generate_call(request: pb.GenerateRequest, request_id: str, timeout_s: float) -> Call:
    """The Call of a generate request. InvalidRequestError names the field."""
    sampling = request.sampling
    stops = tuple(sampling.stop)
    if len(stops) > MAX_STOPS or not all(stops):
        raise InvalidRequestError(
            f"sampling.stop must be at most {MAX_STOPS} strings, none of them empty",
            param="sampling.stop",
        )
    if sampling.HasField("max_tokens") and sampling.max_tokens < 1:
        raise InvalidRequestError(
            f"sampling.max_tokens is {sampling.max_tokens}, but must be 1 or more",
            param="sampling.max_tokens",
        )
    prompt = _prompt(request)
    return Call(
        request_id=request_id,
        prompts=(prompt,),
        sampling=_sampling(sampling),
        model=request.model or None,
        max_tokens=sampling.max_tokens if sampling.HasField("max_tokens") else None,
        fill_context=isinstance(prompt, ChatPrompt),
        seed=sampling.seed if sampling.HasField("seed") else None,
        stop=stops,
        priority=request.priority,
        cache_salt=request.cache_salt,
        timeout_s=timeout_s,
    )


def chat_prompt(chat: pb.Chat) -> ChatPrompt:
    """Messages for the template. InvalidRequestError names the message."""
    if not chat.messages:
        raise InvalidRequestError(
            "chat.messages is empty: give at least one", param="chat.messages"
        )
    messages = []
    for i, message in enumerate(chat.messages):
        if message.role not in _ROLES:
            raise InvalidRequestError(
                f"chat.messages[{i}].role is {message.role[:40]!r}: use one of {', '.join(_ROLES)}",
                param=f"chat.messages[{i}].role",
            )
        messages.append({"role": _ROLES[message.role], "content": message.content})
    return ChatPrompt(messages=messages, template_kwargs=_template_kwargs(chat))


def usage_message(num_prompt_tokens: int, choice: Choice) -> pb.Usage:
    """Token counts of one sequence."""
    return pb.Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=choice.num_tokens,
        cached_tokens=choice.num_cached_tokens,
    )


def logprob_messages(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprob | None] | None
) -> list[pb.TokenLogprob]:
    """Messages of the entries; the missing one of a prompt's first token has rank 0."""
    name = tokenizer.token_text
    return [
        pb.TokenLogprob(
            token_id=entry.token_id,
            text=name(entry.token_id),
            logprob=entry.logprob,
            rank=entry.rank,
            top=[
                pb.TopLogprob(token_id=token_id, text=name(token_id), logprob=logprob)
                for token_id, logprob in entry.top
            ],
        )
        if entry is not None
        else pb.TokenLogprob()
        for entry in entries or ()
    ]


def _prompt(request: pb.GenerateRequest) -> Prompt:
    kind = request.WhichOneof("input")
    if kind == "prompt":
        return TextPrompt(text=request.prompt)
    if kind == "chat":
        return chat_prompt(request.chat)
    if kind == "token_ids":
        return TokenPrompt(token_ids=request.token_ids.ids, param="token_ids")
    raise InvalidRequestError("give one of prompt, chat or token_ids", param="input")


def _template_kwargs(chat: pb.Chat) -> dict[str, object]:
    if not chat.template_kwargs_json:
        return {}
    try:
        value = json.loads(chat.template_kwargs_json)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"chat.template_kwargs_json is not JSON: {error}", param="chat.template_kwargs_json"
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequestError(
            "chat.template_kwargs_json must be a JSON object", param="chat.template_kwargs_json"
        )
    return value


def _sampling(wanted: pb.Sampling) -> SamplingParams:
    def number(name: str) -> float:
        field = wanted if wanted.HasField(name) else _DEFAULTS
        return float(getattr(field, name))

    return SamplingParams(
        temperature=number("temperature"),
        top_k=int(number("top_k")),
        top_p=number("top_p"),
        min_p=number("min_p"),
        repetition_penalty=number("repetition_penalty"),
        presence_penalty=number("presence_penalty"),
        frequency_penalty=number("frequency_penalty"),
        logit_bias=tuple(wanted.logit_bias.items()),
        min_tokens=int(number("min_tokens")),
        stop_token_ids=tuple(wanted.stop_token_ids),
        ignore_eos=wanted.ignore_eos,
        logprobs=_count(wanted, "logprobs"),
        prompt_logprobs=_count(wanted, "prompt_logprobs"),
    )


def _count(wanted: pb.Sampling, name: str) -> int | None:
    if not wanted.HasField(name):
        return None
    value = int(getattr(wanted, name))
    if not 0 <= value <= MAX_LOGPROBS:
        raise InvalidRequestError(
            f"sampling.{name} is {value}, but must be in [0, {MAX_LOGPROBS}]",
            param=f"sampling.{name}",
        )
    return value
