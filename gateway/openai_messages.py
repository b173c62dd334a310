"""Messages and tools of a chat request, as OpenAI writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from baton.protos.errors import InvalidRequestError

# OpenAI's letters, and those that gateways of other protocols put into names.
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


class StrictModel(BaseModel):
    """No coercion, no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


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


class FunctionCall(StrictModel):
    """A call that the model made earlier; `arguments` is an object or its JSON text."""

    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(StrictModel):
    """One entry of an assistant message's tool_calls."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    # As streams have it.
    index: int | None = None

    def for_template(self) -> dict[str, Any]:
        """With the arguments as an object; the chat template makes text of it if it wants text."""
        function = {"name": self.function.name, "arguments": self._arguments()}
        call: dict[str, Any] = {"type": self.type, "function": function}
        return call if self.id is None else {"id": self.id, **call}

    def _arguments(self) -> dict[str, Any]:
        given = self.function.arguments
        if isinstance(given, dict):
            return given
        name = self.id or self.function.name
        try:
            arguments = json.loads(given or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(
                f"messages: the arguments of tool call {name!r} are not JSON: {error}",
                param="messages",
            ) from error
        if not isinstance(arguments, dict):
            raise InvalidRequestError(
                f"messages: the arguments of tool call {name!r} are {given[:40]!r}, but must be "
                "a JSON object",
                param="messages",
            )
        return arguments


class Message(StrictModel):
    """One message of a chat; fields that assistants' own replies carry may be sent back."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_text_content)] = ""
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it. `developer` is the newer name of `system`, which templates
        know.
        """
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self.content or self.refusal or ""}
        for key in ("name", "tool_call_id"):
            value = getattr(self, key)
            if value is not None:
                message[key] = value
        thought = self.reasoning if self.reasoning_content is None else self.reasoning_content
        if thought is not None:
            message["reasoning_content"] = thought
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message


def _tool_name(name: str) -> str:
    if not _TOOL_NAME.fullmatch(name):
        raise ValueError("must be 1 to 128 letters, digits, and any of _ - . : /")
    return name


class Function(StrictModel):
    """A function that the model may call; `parameters` is a JSON schema of an object."""

    name: Annotated[str, AfterValidator(_tool_name)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def arguments_schema(self) -> dict[str, Any]:
        """The parameters, also of a function that declares none."""
        return self.parameters or {"type": "object", "properties": {}}


class Tool(StrictModel):
    """One entry of `tools`."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """As models were shown it: `strict` is between client and server."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        function["parameters"] = self.function.arguments_schema
        return {"type": self.type, "function": function}


class ToolChoice(StrictModel):
    """Which tools may or must be called. `names`: these alone; None: any of the request's."""

    mode: Literal["auto", "none", "required"]
    names: tuple[str, ...] | None = None


def read_tool_choice(value: object) -> ToolChoice | None:
    """OpenAI's forms of tool_choice: a mode, a function, or a list of allowed ones."""
    if value is None:
        return None
    if value in ("auto", "none", "required"):
        return ToolChoice(mode=value)
    if isinstance(value, dict):
        if value.get("type") == "function":
            return ToolChoice(mode="required", names=(_function_name(value),))
        allowed = value.get("allowed_tools")
        if value.get("type") == "allowed_tools" and isinstance(allowed, dict):
            return _read_allowed(allowed)
    raise ValueError(
        "must be 'none', 'auto', 'required', {'type': 'function', 'function': {'name': ...}} or "
        "{'type': 'allowed_tools', 'allowed_tools': {'mode': ..., 'tools': [...]}}"
    )


def _read_allowed(allowed: dict[str, Any]) -> ToolChoice:
    mode, tools = allowed.get("mode"), allowed.get("tools")
    if mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
        raise ValueError("allowed_tools must have a mode, 'auto' or 'required', and some tools")
    return ToolChoice(mode=mode, names=tuple(_function_name(tool) for tool in tools))


def _function_name(entry: object) -> str:
    function = entry.get("function") if isinstance(entry, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise ValueError("must name a function: {'type': 'function', 'function': {'name': ...}}")
    return name


def check_tools(tools: Sequence[Tool], choice: ToolChoice | None) -> None:
    """Raises InvalidRequestError for doubled names and choices that no tool answers."""
    names = [tool.function.name for tool in tools]
    doubled = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if doubled is not None:
        raise InvalidRequestError(
            f"tools has two functions of the name {doubled!r}: rename one", param="tools"
        )
    if choice is None:
        return
    if not names and choice.mode == "required":
        raise InvalidRequestError(
            "tool_choice asks for a call, but there are no tools: give some or leave it out",
            param="tool_choice",
        )
    unknown = next((name for name in choice.names or () if name not in names), None)
    if unknown is not None:
        raise InvalidRequestError(
            f"tool_choice names {unknown[:80]!r}, but the tools are {', '.join(names)}",
            param="tool_choice",
        )
