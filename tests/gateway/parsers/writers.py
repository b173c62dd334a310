"""Calls as models write them, in every format: what a parser must read back."""

# DeepSeek's and Step's tokens are written with full-width bars.
# ruff: noqa: RUF001

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

Call = tuple[str, dict[str, Any]]
Write = Callable[[list[Call]], str]

M3: Final = "]<]minimax[>["
QUOTE: Final = '<|"|>'
TYPES: Final = {
    str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array",
    type(None): "null",
}  # fmt: skip


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def bare(value: Any) -> str:
    """Strings as they are, the rest as JSON."""
    return value if isinstance(value, str) else dumps(value)


def each(one: Callable[[str, dict[str, Any]], str], before: str = "", after: str = "") -> Write:
    return lambda calls: before + "".join(one(name, args) for name, args in calls) + after


def joined(args: dict[str, Any], pair: Callable[[str, Any], str]) -> str:
    return "".join(pair(key, value) for key, value in args.items())


def tagged(before: str, after: str, key: str = "arguments") -> Write:
    """Each call is an object between markers."""
    return each(lambda name, args: f'{before}{{"name": "{name}", "{key}": {dumps(args)}}}{after}')


def listed(before: str, after: str, indent: int | None = None) -> Write:
    return lambda calls: (
        before
        + json.dumps(
            [{"name": name, "arguments": args} for name, args in calls],
            ensure_ascii=False,
            indent=indent,
        )
        + after
    )


def functions(section: str, end: str, line: str = "\n") -> Write:
    """`<function=f><parameter=k>v</parameter></function>`"""

    def one(name: str, args: dict[str, Any]) -> str:
        inside = joined(args, lambda k, v: f"<parameter={k}>{line}{bare(v)}{line}</parameter>\n")
        return f"{section}\n<function={name}>\n{inside}</function>\n{end}"

    return each(one)


def keys_and_values(line: str, between: str = "", before: str = "", after: str = "") -> Write:
    """`<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>`"""

    def one(name: str, args: dict[str, Any]) -> str:
        inside = joined(
            args,
            lambda k, v: f"<arg_key>{k}</arg_key>{line}<arg_value>{bare(v)}</arg_value>{line}",
        )
        return f"<tool_call>{name}{between}{line}{inside}</tool_call>"

    return each(one, before, after)


def invoked(before: str, after: str, tag: str = "", mark: str = "", end: str = "") -> Write:
    """`<invoke name="f"><parameter name="k">v</parameter></invoke>`"""

    def one(name: str, args: dict[str, Any]) -> str:
        inside = joined(
            args, lambda k, v: f'<{tag}parameter name="{k}">{bare(v)}</{tag}parameter>\n'
        )
        return f'{mark}<{tag}invoke name="{name}">\n{inside}</{tag}invoke>\n{end}'

    return each(one, before, after)


def dsml(section: str, space: str = "") -> Write:
    mark = f"｜DSML｜{space}"

    def pair(key: str, value: Any) -> str:
        text = "true" if isinstance(value, str) else "false"
        head = f'<{mark}parameter name="{key}" string="{text}">'
        return f"{head}{bare(value)}</{mark}parameter>\n"

    def one(name: str, args: dict[str, Any]) -> str:
        return f'<{mark}invoke name="{name}">\n{joined(args, pair)}</{mark}invoke>\n'

    return each(one, f"<{mark}{section}>\n", f"</{mark}{section}>")


def gemma(before: str, after: str, quote: str = QUOTE) -> Write:
    def value_of(value: Any) -> str:
        if isinstance(value, str):
            return quote + value + quote
        if isinstance(value, dict):
            return "{" + ",".join(f"{k}:{value_of(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(value_of, value)) + "]"
        return dumps(value)

    return each(lambda name, args: f"{before}call:{name}{value_of(args)}{after}")


def python(before: str, after: str, between: str = ", ") -> Write:
    def one(name: str, args: dict[str, Any]) -> str:
        return f"{name}({', '.join(f'{k}={v!r}' for k, v in args.items())})"

    return lambda calls: before + between.join(one(*call) for call in calls) + after


def minimax_m3(calls: list[Call]) -> str:
    def pair(key: str, value: Any) -> str:
        if isinstance(value, dict):
            inside = joined(value, pair)
        elif isinstance(value, list):
            inside = "".join(pair("item", one) for one in value)
        else:
            inside = bare(value)
        return f"{M3}<{key}>{inside}{M3}</{key}>"

    invokes = [f'{M3}<invoke name="{n}">{joined(a, pair)}{M3}</invoke>\n' for n, a in calls]
    return f"{M3}<tool_call>\n{''.join(invokes)}{M3}</tool_call>"


def harmony(calls: list[Call]) -> str:
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
        f"{dumps(args)}<|call|>"
        for name, args in calls
    )


def beam(calls: list[Call]) -> str:
    def pair(key: str, value: Any) -> str:
        return f'<rfl:parameter name="{key}">\n{bare(value)}\n</rfl:parameter>\n'

    return "<|start|>assistant".join(
        f"<|channel|>commentary to={name} <|constrain|>xml<|message|>{joined(args, pair)}<|call|>"
        for name, args in calls
    )


def muse(calls: list[Call]) -> str:
    body = invoked("<atem:function_calls>\n", "</atem:function_calls><|eom|>", "atem:")
    return "".join(f"<|start|>assistant to={call[0]}<|message|>{body([call])}" for call in calls)


def kimi_k3(calls: list[Call]) -> str:
    def pair(key: str, value: Any) -> str:
        head = f'<|open|>argument key="{key}" type="{TYPES[type(value)]}"<|sep|>'
        return f"{head}{bare(value)}<|close|>argument<|sep|>"

    inside = "".join(
        f'<|open|>call tool="{name}" index="{i}"<|sep|>{joined(args, pair)}<|close|>call<|sep|>'
        for i, (name, args) in enumerate(calls, 1)
    )
    return f"<|open|>tools<|sep|>{inside}<|close|>tools<|sep|>"


def kimi_k2(calls: list[Call]) -> str:
    inside = "".join(
        f"<|tool_call_begin|>functions.{name}:{i}<|tool_call_argument_begin|>{dumps(args)}"
        "<|tool_call_end|>"
        for i, (name, args) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{inside}<|tool_calls_section_end|>"


def minicpm5(name: str, args: dict[str, Any]) -> str:
    def pair(key: str, value: Any) -> str:
        text = f"<![CDATA[{value}]]>" if isinstance(value, str) else dumps(value)
        return f'<param name="{key}">{text}</param>'

    return f'<function name="{name}">{joined(args, pair)}</function>\n'


def k2_horizon(*, typed: bool) -> Write:
    def pair(key: str, value: Any) -> str:
        kind = f"<ifm|arg_type>{TYPES[type(value)]}</ifm|arg_type>" if typed else ""
        head = f"<ifm|arg_key>{key}</ifm|arg_key>{kind}"
        return f"{head}<ifm|arg_value>{bare(value)}</ifm|arg_value>"

    return each(
        lambda name, args: f"<ifm|tool_call>{name}{joined(args, pair)}</ifm|tool_call>",
        "<ifm|tool_calls>",
        "</ifm|tool_calls>",
    )
