"""The bodies of OpenAI's API as this gateway reads them, with vLLM's names for what goes beyond it.

Strict: an unknown field, a wrong type or a value that would change the answer in a way that is not
done is refused by name. These are read and have no effect on the answer: user, metadata, store,
service_tier, prediction, prompt_cache_key, prompt_cache_retention,
prompt_cache_options, safety_identifier, stream_options.include_obfuscation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from baton.gateway.openai_format import OutputFields
from baton.gateway.openai_messages import (
    Message,
    StrictModel,
    Tool,
    ToolChoice,
    read_tool_choice,
)
from baton.protos.errors import InvalidRequestError, UnprocessableError

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
MAX_LOGPROBS = 20
MAX_STOPS = 4
_INT64 = 2**63
_TOKEN_ID = re.compile(r"[0-9]{1,10}")

# Fields that are known but not done yet, with the values that ask for nothing.
_CHAT_NOT_YET: Mapping[str, tuple[object, ...]] = {
    "audio": (None,),
    "modalities": (None, ["text"]),
    "functions": (None, []),
    "function_call": (None, "none"),
    "web_search_options": (None,),
    "verbosity": (None, "medium"),
    "moderation": (None,),
}
_COMPLETION_NOT_YET: Mapping[str, tuple[object, ...]] = {
    "suffix": (None, ""),
}


def _stop_strings(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"has {len(stops)} strings, at most {MAX_STOPS} are allowed")
    if not all(stops):
        raise ValueError("has an empty string, which would stop every answer at once: remove it")
    return tuple(stops)


def _logit_bias(value: dict[str, float] | None) -> dict[str, float] | None:
    for key in value or {}:
        if not _TOKEN_ID.fullmatch(key):
            raise ValueError(f"has the key {key!r}, but keys must be token ids such as '42'")
    return value


def _prompts(value: object) -> list[str] | list[list[int]]:
    """One or many prompts, as text or as token ids, always as a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return list(value)
        if _is_ids(value):
            return [value]
        if all(isinstance(item, list) and item and _is_ids(item) for item in value):
            return list(value)
    raise ValueError(
        "must be a string, a list of strings, a list of token ids, or a list of such lists"
    )


def _is_ids(value: list[object]) -> bool:
    return all(type(item) is int for item in value)


class StreamOptions(StrictModel):
    """`include_usage` adds a last chunk with the usage."""

    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationBody(OutputFields):
    """What chat and completions have in common."""

    model: str | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, float] | None, AfterValidator(_logit_bias)] = None
    max_tokens: int | None = Field(None, le=2**31 - 1)
    n: int | None = Field(None, ge=1, le=128)
    seed: int | None = Field(None, ge=-_INT64, le=_INT64 - 1)
    stop: Annotated[tuple[str, ...], BeforeValidator(_stop_strings)] = ()
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None
    # Beyond OpenAI, by vLLM's names.
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0, le=2**31 - 1)
    skip_special_tokens: bool = True
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool | None = None
    priority: int = Field(0, ge=-(2**31), le=2**31 - 1)
    cache_salt: str | None = Field(None, min_length=1)
    return_token_ids: bool = False

    def _check_streaming(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise UnprocessableError(
                "stream_options is set, but stream is not: set stream to true or leave it out",
                param="stream_options",
            )
        if self.stream and self.prompt_logprobs is not None:
            raise UnprocessableError(
                "prompt_logprobs cannot be streamed: set stream to false", param="prompt_logprobs"
            )


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    audio: Any = None
    modalities: Any = None
    tools: list[Tool] | None = None
    tool_choice: Annotated[ToolChoice | None, BeforeValidator(read_tool_choice)] = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    include_reasoning: bool = True
    thinking_token_budget: int | None = Field(None, ge=0, le=2**31 - 1)
    # Another name of the same.
    thinking_budget: int | None = Field(None, ge=0, le=2**31 - 1)
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None
    verbosity: Any = None
    moderation: Any = None
    # Read, without effect.
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_not_yet(self, _CHAT_NOT_YET)
        self._check_streaming()
        if self.top_logprobs is not None and not self.logprobs:
            raise UnprocessableError(
                "top_logprobs is set, but logprobs is not true: set it or leave top_logprobs out",
                param="top_logprobs",
            )
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise UnprocessableError(
                f"max_tokens is {both[0]} and max_completion_tokens is {both[1]}: set one of them",
                param="max_tokens",
            )
        budgets = (self.thinking_token_budget, self.thinking_budget)
        if None not in budgets and budgets[0] != budgets[1]:
            raise UnprocessableError(
                f"thinking_token_budget is {budgets[0]} and thinking_budget is {budgets[1]}: "
                "set one of them",
                param="thinking_token_budget",
            )
        return self


class CompletionBody(GenerationBody):
    """POST /v1/completions. `prompt` is always a list here."""

    prompt: Annotated[list[str] | list[list[int]], BeforeValidator(_prompts)]
    max_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=0, le=20)
    suffix: Any = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_not_yet(self, _COMPLETION_NOT_YET)
        self._check_streaming()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequestError(
                f"best_of is {self.best_of}, but only n ({self.n or 1}) is supported: leave it out",
                param="best_of",
            )
        if self.max_tokens == 0 and not self.echo:
            raise UnprocessableError(
                "max_tokens is 0, which makes sense only with echo: use 1 or more",
                param="max_tokens",
            )
        return self


class TokenizeBody(StrictModel):
    """POST /tokenize: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise UnprocessableError("give either prompt or messages", param="prompt")
        return self


class DetokenizeBody(StrictModel):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


def _refuse_not_yet(body: BaseModel, fields: Mapping[str, tuple[object, ...]]) -> None:
    for name, harmless in fields.items():
        value = getattr(body, name)
        if value not in harmless:
            raise InvalidRequestError(
                f"{name} is not supported yet: leave it out",
                param=name,
                code="unsupported_parameter",
            )
