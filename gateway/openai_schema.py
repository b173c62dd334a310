"""The bodies of OpenAI's API as this gateway reads them, with vLLM's names for what goes beyond it.

Strict: an unknown field, a wrong type or a value that would change the answer in a way that is not
done is refused by name. These are read and have no effect on the answer: user, metadata, store,
service_tier, prediction, parallel_tool_calls, prompt_cache_key, prompt_cache_retention,
prompt_cache_options, safety_identifier, stream_options.include_obfuscation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from baton.protos.errors import InvalidRequestError, UnprocessableError

MAX_LOGPROBS = 20
MAX_STOPS = 4
_INT64 = 2**63
_TOKEN_ID = re.compile(r"[0-9]{1,10}")

# Fields that are known but not done yet, with the values that ask for nothing.
_CHAT_NOT_YET: Mapping[str, tuple[object, ...]] = {
    "audio": (None,),
    "modalities": (None, ["text"]),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "functions": (None, []),
    "function_call": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "web_search_options": (None,),
    "verbosity": (None, "medium"),
    "reasoning_effort": (None,),
    "moderation": (None,),
}
_COMPLETION_NOT_YET: Mapping[str, tuple[object, ...]] = {
    "suffix": (None, ""),
    "response_format": (None, {"type": "text"}),
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


def _text_content(value: object) -> str:
    """The text of a message's content: a string, or parts of which every one is text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of parts")
    return "\n".join(_part_text(i, part) for i, part in enumerate(value))


def _part_text(index: int, part: object) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError(f"part {index} must be an object with a type, such as 'text'")
    kind = part["type"]
    if kind not in ("text", "refusal"):
        raise ValueError(
            f"part {index} has the type {kind!r}, which is not supported yet: use 'text'"
        )
    unknown = sorted(part.keys() - {"type", kind})
    if unknown:
        raise ValueError(f"part {index} has the unknown field {unknown[0]!r}")
    text = part.get(kind)
    if not isinstance(text, str):
        raise ValueError(f"part {index} must have a string in {kind!r}")
    return text


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


class StrictModel(BaseModel):
    """No coercion, no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class FunctionCall(StrictModel):
    """A call that the model made earlier; `arguments` is the JSON text of an object."""

    name: str
    arguments: str


class ToolCall(StrictModel):
    """One entry of an assistant message's tool_calls."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """Templates want the arguments as an object."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(
                f"messages: the arguments of tool call {self.id!r} are not JSON: {error}",
                param="messages",
            ) from error
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": self.type, "function": function}


class Message(StrictModel):
    """One message of a chat; fields that assistants' own replies carry may be sent back."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_text_content)] = ""
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it. `developer` is the newer name of `system`, which templates
        know.
        """
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self.content or self.refusal or ""}
        for key in ("name", "tool_call_id", "reasoning_content"):
            value = getattr(self, key)
            if value is not None:
                message[key] = value
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message


class StreamOptions(StrictModel):
    """`include_usage` adds a last chunk with the usage."""

    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationBody(StrictModel):
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
    response_format: Any = None

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
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None
    verbosity: Any = None
    reasoning_effort: Any = None
    moderation: Any = None
    # Read, without effect.
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prediction: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
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
