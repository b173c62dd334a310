"""Chat templates of Hugging Face folders, rendered in a sandbox without transformers."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from baton.protos.errors import InvalidRequestError, ModelLoadError

_RESERVED = {"messages", "add_generation_prompt", "tools", "documents"}
_RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError)


# One call and its result, to see how a template writes them.
_PROBE = (
    {"role": "user", "content": "q"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "callprobe",
                "type": "function",
                "function": {"name": "probe_name", "arguments": {"probe_key": "probe_value"}},
            }
        ],
    },
    {"role": "tool", "name": "probe_name", "tool_call_id": "callprobe", "content": "probe_result"},
)

_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "other",
        "description": "d",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}


class CallStyle(NamedTuple):
    """How a template wants an assistant's calls: content none or empty, arguments an object or
    JSON text.
    """

    null_content: bool = False
    text_arguments: bool = False


class ChatTemplate:
    """One compiled template. Rendering mutates nothing and is safe from any thread.

    `tool_source`: another template, for requests with tools, as some models bring one.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], *, tool_source: str | None = None
    ) -> None:
        self.source = source + (tool_source or "")
        self._special_tokens = dict(special_tokens)
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self._tool_template = environment.from_string(tool_source or source)
        except jinja2.TemplateError as error:
            raise ModelLoadError(f"the chat template does not compile: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text. InvalidRequestError where the template refuses the messages."""
        extra = template_kwargs or {}
        taken = sorted(_RESERVED & extra.keys())
        if taken:
            raise InvalidRequestError(
                f"chat_template_kwargs may not set {taken[0]}: it is a field of the request itself",
                param=f"chat_template_kwargs.{taken[0]}",
            )
        if any(message.get("tool_calls") for message in messages):
            messages = [_restyled(message, self.call_style) for message in messages]
        kwargs = {**extra, "add_generation_prompt": add_generation_prompt}
        try:
            return self._rendered(messages, tools, kwargs)
        except _RENDER_ERRORS as error:
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error

    @functools.cached_property
    def call_style(self) -> CallStyle:
        """The first style in which the template writes a call and its result as they are.

        Templates differ here and say so nowhere; a wrong style drops calls or writes `None` or
        Python's own notation into the prompt, without an error.
        """
        styles = [CallStyle(null, text) for text in (False, True) for null in (True, False)]
        return next((style for style in styles if self._writes_calls(style)), CallStyle())

    def _writes_calls(self, style: CallStyle) -> bool:
        messages = [_restyled(message, style) for message in _PROBE]
        try:
            text = self._rendered(messages, (_PROBE_TOOL,), {"add_generation_prompt": True})
        except _RENDER_ERRORS:
            return False
        wanted = ("probe_name", "probe_key", "probe_value", "probe_result")
        return all(w in text for w in wanted) and "None" not in text and "{'" not in text

    def _rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        kwargs: Mapping[str, Any],
    ) -> str:
        template = self._tool_template if tools else self._template
        given = {**self._special_tokens, **kwargs, "messages": messages}
        # As transformers does: without tools the name is there, and none.
        return template.render(**given, tools=list(tools) or None)


def _restyled(message: Mapping[str, Any], style: CallStyle) -> Mapping[str, Any]:
    """A message whose calls are as the template wants them; others are as they were."""
    if not message.get("tool_calls"):
        return message
    content = message.get("content") or (None if style.null_content else "")
    calls = [_restyled_call(call, style) for call in message["tool_calls"]]
    return {**message, "content": content, "tool_calls": calls}


def _restyled_call(call: Mapping[str, Any], style: CallStyle) -> Mapping[str, Any]:
    if not style.text_arguments:
        return call
    function = call["function"]
    text = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def load_chat_template(model_dir: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
    """chat_template.jinja, else tokenizer_config.json's; None if the model has neither."""
    path = model_dir / "chat_template.jinja"
    source = path.read_text() if path.is_file() else tokenizer_config.get("chat_template")
    tool_path = model_dir / "additional_chat_templates" / "tool_use.jinja"
    tool_source = tool_path.read_text() if tool_path.is_file() else None
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source, tool_source = named.get("default"), named.get("tool_use")
    if source is None:
        return None
    if not isinstance(source, str):
        raise ModelLoadError(f"chat_template in {model_dir} is not text", param="chat_template")
    return ChatTemplate(source, _special_tokens(tokenizer_config), tool_source=tool_source)


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, value in tokenizer_config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            found[name] = content
    return found


class _Generation(Extension):
    """`{% generation %}`: marks the assistant's text for training; here its body is only
    rendered.
    """

    tags = {"generation"}  # noqa: RUF012 -- jinja2's own contract

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja2's own filter escapes for HTML, which would change the prompt."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
