"""Calls written as each format's models write them are read back, whole and in pieces."""

# DeepSeek's and Step's tokens are written with full-width bars.
# ruff: noqa: RUF001

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.gateway.parsers.writers import (
    Call,
    Write,
    beam,
    dsml,
    dumps,
    each,
    functions,
    gemma,
    harmony,
    invoked,
    k2_horizon,
    keys_and_values,
    kimi_k2,
    kimi_k3,
    listed,
    minicpm5,
    minimax_m3,
    muse,
    python,
    tagged,
)

from baton.gateway.parsers import formats
from baton.gateway.parsers.registry import ParserRegistry
from baton.gateway.parsers.tool_formats import TOOL_FORMATS

REGISTRY = ParserRegistry()
PROPERTIES = {
    "city": {"type": "string"},
    "code": {"type": "string"},
    "n": {"type": "integer"},
    "f": {"type": "number"},
    "b": {"type": "boolean"},
    "z": {"type": ["string", "null"]},
    "tags": {"type": "array", "items": {"type": "string"}},
    "o": {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}}},
    },
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": PROPERTIES}},
    }
    for name in ("f", "g", "get_weather", "a.b-c")
]
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"city": "Paris"},
    {"n": -3, "f": 1.5, "b": True, "z": None},
    {"o": {"a": [1, 2], "s": "c}"}, "tags": ["x", "y,z", " ]"]},
    {"city": "Mün\"chen' \\ <b> & {x} [1] (2) 日本 🎉, a=b: c; d", "code": "</x> <y>"},
    {"code": "def f(x):\n    return {'a': \"b\"}  # ok\n\nif a < b && c > d: print(1)", "city": ""},
    {"city": " padded ", "n": 12345678901234567890, "o": {}, "tags": []},
    {"code": "a long text, so that it comes while it is written: " * 8},
]
ANSWERS: list[list[Call]] = [
    *([("f", arguments)] for arguments in ARGUMENTS),
    [("a.b-c", ARGUMENTS[1]), ("g", {}), ("get_weather", ARGUMENTS[2])],
    [("f", ARGUMENTS[4]), ("f", ARGUMENTS[5])],
]
TOOL_CALLS = ("<tool_calls>", "</tool_calls>")
WRITERS: dict[str, list[Write]] = {
    "seed_oss": [functions("<seed:tool_call>", "</seed:tool_call>")],
    "qwen3_coder": [functions("<tool_call>", "</tool_call>"), functions("", "")],
    "mimo": [functions("<tool_call>", "</tool_call>", "")],
    "step3p5": [functions("<tool_call>", "</tool_call>")],
    "dots": [invoked("<dots_function_call>", "</dots_function_call>")],
    "minimax_m2": [invoked("<minimax:tool_call>\n", "</minimax:tool_call>")],
    "step3": [
        invoked(
            "<｜tool_calls_begin｜>",
            "<｜tool_calls_end｜>",
            "steptml:",
            "<｜tool_call_begin｜>function<｜tool_sep｜>",
            "<｜tool_call_end｜>",
        )
    ],
    "glm45": [keys_and_values("\n"), keys_and_values("")],
    "ling3": [keys_and_values("\n"), keys_and_values("")],
    "poolside_v1": [keys_and_values("\n")],
    "hy_v3": [keys_and_values(line, "<tool_sep>", *TOOL_CALLS) for line in ("", "\n")],
    "deepseek_v32": [dsml("function_calls")],
    "deepseek_v4": [dsml("tool_calls")],
    "deepseek_v41": [dsml("calls", " ")],
    "gemma4": [gemma("<|tool_call>", "<tool_call|>")],
    "hf": [gemma("<|tool_call>", "<tool_call|>")],
    "functiongemma": [gemma("<start_function_call>", "<end_function_call>", "<escape>")],
    "pythonic": [python("[", "]")],
    "llama4_pythonic": [python("[", "]"), python("<|python_start|>[", "]<|python_end|>")],
    "olmo3": [python("<function_calls>", "</function_calls>", "\n")],
    "lfm2": [python("<|tool_call_start|>[", "]<|tool_call_end|>")],
    "minimax_m3": [minimax_m3],
    "openai": [harmony],
    "beam": [beam],
    "muse": [muse],
    "muse_glimmer": [muse],
    "kimi_k3": [kimi_k3],
    "kimi_k2": [kimi_k2],
    "minicpm5": [each(minicpm5)],
    "k2_horizon": [k2_horizon(typed=False), k2_horizon(typed=True)],
    "hermes": [tagged("<tool_call>\n", "\n</tool_call>"), tagged("<tool_call>", "</tool_call>")],
    "granite4": [tagged("<tool_call>\n", "\n</tool_call>\n")],
    "ernie45": [tagged("<tool_call>\n", "\n</tool_call>\n")],
    "llama3_json": [
        lambda calls: "; ".join(dumps({"name": n, "parameters": a}) for n, a in calls),
        tagged("<|python_tag|>", "", "parameters"),
    ],
    "mistral": [
        each(lambda name, args: f"[TOOL_CALLS]{name}[ARGS]{dumps(args)}"),
        each(lambda name, args: f"[TOOL_CALLS]{name}{dumps(args)}"),
        listed("[TOOL_CALLS] ", ""),
    ],
    "deepseek_v3": [
        each(
            lambda name, args: (
                f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{dumps(args)}\n```"
                "<｜tool▁call▁end｜>\n"
            ),
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
        )
    ],
    "deepseek_v31": [
        each(
            lambda name, args: (
                f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{dumps(args)}<｜tool▁call▁end｜>"
            ),
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
        )
    ],
    "granite-20b-fc": [tagged("<function_call> ", "\n")],
    "granite": [listed("<|tool_call|>", ""), listed("<tool_call> ", "")],
    "internlm": [
        tagged(f"<|action_start|>{blank}<|plugin|>", "<|action_end|>", "parameters")
        for blank in ("", " ")
    ],
    "hunyuan_a13b": [listed(*TOOL_CALLS), listed(*TOOL_CALLS, indent=1)],
    "jamba": [listed(*TOOL_CALLS, indent=4)],
    "longcat": [tagged("<longcat_tool_call>", "</longcat_tool_call>")],
    "iquest_q1": [tagged("<iquest_tool_call>", "</iquest_tool_call>")],
    "phi4_mini_json": [listed("functools", "")],
    "xlam": [
        listed(*around)
        for around in (
            ("", ""),
            ("```json\n", "\n```"),
            ("<tool_call>", "</tool_call>"),
            ("[TOOL_CALLS]", ""),
        )
    ],
    "gigachat3": [tagged("<|function_call|>", "")],
    "apertus": [
        lambda calls: f"<|tools_prefix|>{dumps([{n: a} for n, a in calls])}<|tools_suffix|>"
    ],
    "plamo3": [
        each(
            lambda name, args: (
                "<|plamo:begin_tool_request:plamo|><|plamo:begin_tool_name:plamo|>"
                f"{name}<|plamo:end_tool_name:plamo|><|plamo:begin_tool_arguments:plamo|>"
                f"<|plamo:constrain|>json<|plamo:msg|>{dumps(args)}"
                "<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|>"
            ),
            "<|plamo:begin_tool_requests:plamo|>",
            "<|plamo:end_tool_requests:plamo|>",
        )
    ],
    "inkling": [tagged("<|message_model|><|content_invoke_tool_json|>", "<|end_message|>", "args")],
    "cohere_command3": [
        lambda calls: (
            "<|START_ACTION|>"
            + dumps(
                [
                    {"tool_call_id": str(i), "tool_name": name, "parameters": args}
                    for i, (name, args) in enumerate(calls)
                ]
            )
            + "<|END_ACTION|>"
        )
    ],
}


def test_every_format_is_written() -> None:
    assert {form.names[0] for form in TOOL_FORMATS} == WRITERS.keys()


@pytest.mark.parametrize("name", WRITERS)
def test_calls_are_read_as_they_were_written(name: str) -> None:
    form = REGISTRY.tool(name)
    for write in WRITERS[name]:
        for i, calls in enumerate(ANSWERS):
            before = "Sure, let me look — é.\n" if i % 2 else ""
            text = before + write(calls)
            whole = formats.parse(formats.tool_parser(form, TOOLS), [text])
            found = [(call.name, json.loads(call.arguments)) for call in whole.tool_calls]
            assert found == calls, text
            assert whole.content.strip() == before.strip(), text
            pieces = [text[j : j + 3] for j in range(0, len(text), 3)]
            assert formats.parse(formats.tool_parser(form, TOOLS), pieces) == whole
