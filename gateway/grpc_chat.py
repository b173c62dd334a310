"""Chats of public.proto to what the core speaks, and what answers say to its messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, get_args

from baton.gateway.chat_request import ChatAsk
from baton.gateway.openai_format import OutputFields
from baton.gateway.openai_messages import Message, Tool, ToolChoice
from baton.gateway.openai_schema import Effort
from baton.gateway.parse import checked
from baton.gateway.reply import CallDelta
from baton.protos import public_pb2 as pb
from baton.protos.constraints import Grammar
from baton.protos.errors import InvalidRequestError

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MODES = ("auto", "none", "required")
_EFFORTS = get_args(Effort)


def chat_ask(chat: pb.Chat, output: Grammar | None = None) -> ChatAsk:
    """What a chat asks for. InvalidRequestError names the field."""
    if not chat.messages:
        raise InvalidRequestError(
            "chat.messages is empty: give at least one", param="chat.messages"
        )
    return ChatAsk(
        messages=[_message(message, i) for i, message in enumerate(chat.messages)],
        tools=[_tool(tool, i) for i, tool in enumerate(chat.tools)],
        choice=_choice(chat),
        parallel=not chat.single_tool_call,
        kwargs=_object("chat.template_kwargs_json", chat.template_kwargs_json),
        effort=_one_of("chat.reasoning_effort", chat.reasoning_effort, _EFFORTS),
        budget=_budget(chat),
        include_reasoning=not chat.exclude_reasoning,
        output=output,
    )


def output_grammar(request: pb.GenerateRequest) -> Grammar | None:
    """What the answer must match; None for any text. InvalidRequestError names the field."""
    form = request.form
    kind = form.WhichOneof("form")
    if kind is None:
        if form.backend or form.compact:
            raise InvalidRequestError("form says how, but not what: set one of it", param="form")
        return None
    if kind == "json_object" and not form.json_object:
        raise InvalidRequestError("form.json_object is false: leave it out", param="form")
    name = "json" if kind == "json_schema" else kind
    value = list(form.choice.texts) if kind == "choice" else getattr(form, kind)
    outputs = {
        name: value,
        "disable_any_whitespace": form.compact,
        "backend": form.backend or None,
    }
    return checked(OutputFields, {"structured_outputs": outputs}, "form").output_grammar("form")


def call_messages(calls: Sequence[CallDelta]) -> list[pb.ToolCall]:
    """Whole calls."""
    return [
        pb.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments) for call in calls
    ]


def call_delta_messages(calls: Sequence[CallDelta]) -> list[pb.ToolCallDelta]:
    """Pieces of calls."""
    return [
        pb.ToolCallDelta(
            index=call.index, id=call.id, name=call.name, arguments_json=call.arguments
        )
        for call in calls
    ]


def _message(message: pb.Message, index: int) -> Message:
    where = f"chat.messages[{index}]"
    fields: dict[str, Any] = {
        "role": _one_of(f"{where}.role", message.role, _ROLES, required=True),
        "content": message.content,
    }
    for name in ("name", "tool_call_id", "reasoning"):
        if getattr(message, name):
            fields[name] = getattr(message, name)
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id or None,
                "function": {"name": call.name, "arguments": call.arguments_json},
            }
            for call in message.tool_calls
        ]
    return checked(Message, fields, where)


def _tool(tool: pb.Tool, index: int) -> Tool:
    where = f"chat.tools[{index}]"
    function = {
        "name": tool.name,
        "description": tool.description or None,
        "parameters": _object(f"{where}.parameters_json", tool.parameters_json) or None,
        "strict": tool.strict,
    }
    return checked(Tool, {"type": "function", "function": function}, where)


def _choice(chat: pb.Chat) -> ToolChoice | None:
    if not chat.HasField("tool_choice"):
        return None
    mode = _one_of("chat.tool_choice.mode", chat.tool_choice.mode, _MODES) or "auto"
    names = tuple(chat.tool_choice.names) or None
    return checked(ToolChoice, {"mode": mode, "names": names}, "chat.tool_choice")


def _budget(chat: pb.Chat) -> int | None:
    if not chat.HasField("thinking_token_budget"):
        return None
    if chat.thinking_token_budget < 0:
        raise InvalidRequestError(
            f"chat.thinking_token_budget is {chat.thinking_token_budget}, but must be 0 or more",
            param="chat.thinking_token_budget",
        )
    return chat.thinking_token_budget


def _one_of(param: str, value: str, known: Sequence[str], *, required: bool = False) -> str | None:
    if not value and not required:
        return None
    if value not in known:
        raise InvalidRequestError(
            f"{param} is {value[:40]!r}: use one of {', '.join(known)}", param=param
        )
    return value


def _object(param: str, text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{param} is not JSON: {error}", param=param) from error
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{param} must be a JSON object", param=param)
    return value
