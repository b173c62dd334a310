"""Formats of tool calls that are written as JSON or as Python."""

# DeepSeek's and Step's tokens are written with full-width bars.
# ruff: noqa: RUF001

from __future__ import annotations

from dataclasses import replace

from baton.gateway.parsers.formats import CallFrame, ToolFormat
from baton.gateway.parsers.json_calls import JsonCalls
from baton.gateway.parsers.pythonic import PythonCalls
from baton.gateway.parsers.section_calls import NamedJson, SectionCalls

HERMES = JsonCalls(starts=("<tool_call>",), ends=("</tool_call>",))
HERMES_FRAME = CallFrame(
    begin='<tool_call>\n{"name": $quoted, "arguments": ',
    end="}\n</tool_call>",
    trigger="<tool_call>",
)
TOOL_CALLS_FRAME = CallFrame(
    opening="<tool_calls>[",
    begin='{"name": $quoted, "arguments": ',
    end="}",
    separator=", ",
    closing="]</tool_calls>",
    trigger="<tool_calls>[",
)
DEEPSEEK = SectionCalls(
    sections=("<｜tool▁calls▁begin｜>",),
    section_ends=("<｜tool▁calls▁end｜>",),
    calls=("<｜tool▁call▁begin｜>",),
    separators=("<｜tool▁sep｜>",),
    call_ends=("<｜tool▁call▁end｜>",),
)
DEEPSEEK_FRAME = CallFrame(
    opening="<｜tool▁calls▁begin｜>",
    begin="<｜tool▁call▁begin｜>$name<｜tool▁sep｜>",
    end="<｜tool▁call▁end｜>",
    separator="",
    closing="<｜tool▁calls▁end｜>",
    trigger="<｜tool▁calls▁begin｜>",
)
PLAMO3 = SectionCalls(
    sections=("<|plamo:begin_tool_requests:plamo|>",),
    section_ends=("<|plamo:end_tool_requests:plamo|>",),
    calls=("<|plamo:begin_tool_request:plamo|>", "<|plamo:begin_tool_name:plamo|>"),
    kinds=("<|plamo:begin_tool_name:plamo|>",),
    separators=("<|plamo:end_tool_name:plamo|>",),
    fences=("<|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json<|plamo:msg|>",),
    call_ends=(
        "<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|>",
        "<|plamo:end_tool_request:plamo|>",
        "<|plamo:end_tool_arguments:plamo|>",
    ),
    cut="call",
    drops_partial=True,
    ignored=("<|plamo:tag|>",),
)

JSON_FORMATS: tuple[ToolFormat, ...] = (
    ToolFormat(
        names=("llama3_json", "llama4_json", "llama3"),
        machine=JsonCalls(starts=("<|python_tag|>",), bare="{", between=(";",)),
        example='{"name": "f", "parameters": {"city": "Paris"}}',
        models="Llama 3.1 to 3.3, Llama 4 (JSON template)",
        template_marks=("<|python_tag|>",),
        frame=CallFrame(begin='{"name": $quoted, "parameters": ', end="}", separator="; "),
    ),
    ToolFormat(
        names=("llama4_pythonic",),
        machine=PythonCalls(ignored=("<|python_start|>", "<|python_end|>"), bare=True),
        example="[f(city='Paris')]",
        models="Llama 4",
        template_marks=("<|python_start|>",),
        model_types=("llama4",),
    ),
    ToolFormat(
        names=("pythonic",),
        machine=PythonCalls(ignored=("<|python_start|>", "<|python_end|>"), bare=True),
        example="[f(city='Paris'), g()]",
        models="Llama 3.2, ToolACE",
        template_marks=("[func_name1(params_name1=params_value1",),
    ),
    ToolFormat(
        names=("olmo3",),
        machine=PythonCalls(starts=("<function_calls>",), ends=("</function_calls>",)),
        example="<function_calls>f(city='Paris')\ng()</function_calls>",
        models="OLMo 3",
        template_marks=("<function_calls>", "<functions>"),
        model_types=("olmo3",),
    ),
    ToolFormat(
        names=("lfm2",),
        machine=PythonCalls(starts=("<|tool_call_start|>",), ends=("<|tool_call_end|>",)),
        example='<|tool_call_start|>[f(city="Paris")]<|tool_call_end|>',
        models="LFM2, LFM2.5",
        template_marks=("<|tool_call_start|>",),
        model_types=("lfm2", "lfm2_moe"),
    ),
    ToolFormat(
        names=("mistral",),
        machine=NamedJson(),
        example='[TOOL_CALLS]f[ARGS]{"city": "Paris"}',
        models="Mistral, Magistral, Devstral, Ministral",
        short_ids=True,
        template_marks=("[TOOL_CALLS]",),
        model_types=("mistral", "mistral3", "ministral3"),
        frame=CallFrame(
            begin="[TOOL_CALLS]$name[ARGS]", end="", trigger="[TOOL_CALLS]", separator=""
        ),
    ),
    ToolFormat(
        names=("deepseek_v3", "deepseekv3"),
        machine=replace(
            DEEPSEEK,
            kinds=("function<｜tool▁sep｜>",),
            separators=("\n```json\n", "\n```json", "\n"),
            call_ends=("```<｜tool▁call▁end｜>", "<｜tool▁call▁end｜>"),
        ),
        example="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
        '{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        models="DeepSeek V3, R1",
        template_marks=("<｜tool▁calls▁begin｜>", "```json"),
        frame=replace(
            DEEPSEEK_FRAME,
            begin="<｜tool▁call▁begin｜>function<｜tool▁sep｜>$name\n```json\n",
            end="\n```<｜tool▁call▁end｜>",
            separator="\n",
        ),
    ),
    ToolFormat(
        names=("deepseek_v31", "deepseekv31"),
        machine=DEEPSEEK,
        example="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>"
        '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        models="DeepSeek V3.1",
        calls_last=True,
        template_marks=("<｜tool▁calls▁begin｜>",),
        frame=DEEPSEEK_FRAME,
    ),
    ToolFormat(
        names=("kimi_k2",),
        machine=SectionCalls(
            sections=("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"),
            section_ends=("<|tool_calls_section_end|>", "<|tool_call_section_end|>"),
            calls=("<|tool_call_begin|>",),
            separators=("<|tool_call_argument_begin|>",),
            call_ends=("<|tool_call_end|>",),
            numbered=True,
            ignored=("<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        ),
        example="<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
        '<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|><|tool_calls_section_end|>',
        models="Kimi K2, K2 Thinking, K2.5",
        template_marks=("<|tool_calls_section_begin|>",),
        model_types=("kimi_k2", "kimi_k25"),
        frame=CallFrame(
            opening="<|tool_calls_section_begin|>",
            # A grammar cannot count calls, as their names have to.
            begin="<|tool_call_begin|>functions.$name:0<|tool_call_argument_begin|>",
            end="<|tool_call_end|>",
            closing="<|tool_calls_section_end|>",
            trigger="<|tool_calls_section_begin|>",
            several=False,
        ),
    ),
    ToolFormat(
        names=("granite-20b-fc",),
        machine=JsonCalls(starts=("<function_call>",), lists=False),
        example='<function_call> {"name": "f", "arguments": {"city": "Paris"}}',
        models="Granite 20B function calling",
        template_marks=("<function_call>",),
        frame=CallFrame(
            begin='<function_call> {"name": $quoted, "arguments": ',
            end="}",
            trigger="<function_call>",
        ),
    ),
    ToolFormat(
        names=("internlm", "interns1"),
        machine=JsonCalls(
            starts=("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"),
            ends=("<|action_end|>",),
        ),
        example='<|action_start|><|plugin|>{"name": "f", "parameters": {"city": "Paris"}}'
        "<|action_end|>",
        models="InternLM 2 to 3, Intern-S1",
        template_marks=("<|action_start|>",),
        model_types=("internlm2", "internlm3", "interns1"),
        frame=CallFrame(
            begin='<|action_start|><|plugin|>{"name": $quoted, "parameters": ',
            end="}<|action_end|>",
            trigger="<|action_start|><|plugin|>",
        ),
    ),
    ToolFormat(
        names=("hunyuan_a13b",),
        machine=JsonCalls(
            starts=("<tool_calls>",), ends=("</tool_calls>",), ignored=("<answer>", "</answer>")
        ),
        example='<tool_calls>[{"name": "f", "arguments": {"city": "Paris"}}]</tool_calls>',
        models="Hunyuan A13B",
        calls_last=True,
        template_marks=("<tool_calls>", "<answer>"),
        model_types=("hunyuan_v1_moe",),
        frame=TOOL_CALLS_FRAME,
    ),
    ToolFormat(
        names=("jamba",),
        machine=JsonCalls(starts=("<tool_calls>",), ends=("</tool_calls>",)),
        example='<tool_calls>[{"name": "f", "arguments": {"city": "Paris"}}]</tool_calls>',
        models="Jamba 1.5 and later",
        template_marks=("<tool_calls>",),
        model_types=("jamba",),
        frame=TOOL_CALLS_FRAME,
    ),
    ToolFormat(
        names=("longcat",),
        machine=JsonCalls(starts=("<longcat_tool_call>",), ends=("</longcat_tool_call>",)),
        example='<longcat_tool_call>{"name": "f", "arguments": {"city": "Paris"}}'
        "</longcat_tool_call>",
        models="LongCat-Flash",
        calls_last=True,
        template_marks=("<longcat_tool_call>",),
        model_types=("longcat_flash",),
        frame=CallFrame(
            begin='<longcat_tool_call>{"name": $quoted, "arguments": ',
            end="}</longcat_tool_call>",
            trigger="<longcat_tool_call>",
        ),
    ),
    ToolFormat(
        names=("iquest_q1",),
        machine=JsonCalls(starts=("<iquest_tool_call>",), ends=("</iquest_tool_call>",)),
        example='<iquest_tool_call>{"name": "f", "arguments": {"city": "Paris"}}'
        "</iquest_tool_call>",
        models="IQuest Q1",
        template_marks=("<iquest_tool_call>",),
        frame=CallFrame(
            begin='<iquest_tool_call>{"name": $quoted, "arguments": ',
            end="}</iquest_tool_call>",
            trigger="<iquest_tool_call>",
        ),
    ),
    ToolFormat(
        names=("phi4_mini_json",),
        machine=JsonCalls(starts=("functools",)),
        example='functools[{"name": "f", "arguments": {"city": "Paris"}}]',
        models="Phi-4 mini",
        template_marks=("functools",),
        frame=replace(TOOL_CALLS_FRAME, opening="functools[", closing="]", trigger="functools["),
    ),
    ToolFormat(
        names=("xlam",),
        machine=JsonCalls(
            starts=("[TOOL_CALLS]", "<tool_call>", "```json\n", "\n```json\n"),
            ends=("</tool_call>", "\n```"),
            bare="[{",
        ),
        example='[{"name": "f", "arguments": {"city": "Paris"}}]',
        models="xLAM 1 and 2",
        frame=replace(TOOL_CALLS_FRAME, opening="[", closing="]", trigger=""),
    ),
    ToolFormat(
        names=("gigachat3", "gigachat35"),
        machine=JsonCalls(
            starts=("<|message_sep|>\n\nfunction call<|role_sep|>\n", "<|function_call|>"),
            ends=("</s>",),
        ),
        example='<|function_call|>{"name": "f", "arguments": {"city": "Paris"}}',
        models="GigaChat 3, 3.5",
        template_marks=("function call<|role_sep|>",),
        frame=CallFrame(
            begin='<|function_call|>{"name": $quoted, "arguments": ',
            end="}",
            trigger="<|function_call|>",
            several=False,
        ),
    ),
    ToolFormat(
        names=("apertus", "apertus2509"),
        machine=JsonCalls(
            starts=("<|tools_prefix|>",), ends=("<|tools_suffix|>",), keyed=True, complete=True
        ),
        example='<|tools_prefix|>[{"f": {"city": "Paris"}}]<|tools_suffix|>',
        models="Apertus",
        template_marks=("<|tools_prefix|>",),
        model_types=("apertus",),
        frame=replace(
            TOOL_CALLS_FRAME,
            opening="<|tools_prefix|>[",
            begin="{$quoted: ",
            closing="]<|tools_suffix|>",
            trigger="<|tools_prefix|>[",
        ),
    ),
    ToolFormat(
        names=("plamo3",),
        machine=PLAMO3,
        example="<|plamo:begin_tool_requests:plamo|><|plamo:begin_tool_request:plamo|>"
        "<|plamo:begin_tool_name:plamo|>f<|plamo:end_tool_name:plamo|>"
        "<|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json<|plamo:msg|>"
        '{"city": "Paris"}<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|>'
        "<|plamo:end_tool_requests:plamo|>",
        models="PLaMo 3",
        template_marks=("<|plamo:begin_tool_requests:plamo|>",),
        model_types=("plamo3",),
        frame=CallFrame(
            opening="<|plamo:begin_tool_requests:plamo|>",
            begin="<|plamo:begin_tool_request:plamo|><|plamo:begin_tool_name:plamo|>$name"
            "<|plamo:end_tool_name:plamo|><|plamo:begin_tool_arguments:plamo|>"
            "<|plamo:constrain|>json<|plamo:msg|>",
            end="<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|>",
            closing="<|plamo:end_tool_requests:plamo|>",
            separator="",
            trigger="<|plamo:begin_tool_requests:plamo|>",
        ),
    ),
    ToolFormat(
        names=("granite4",),
        machine=HERMES,
        example='<tool_call>\n{"name": "f", "arguments": {"city": "Paris"}}\n</tool_call>',
        models="Granite 4",
        model_types=("granitemoehybrid",),
        frame=HERMES_FRAME,
    ),
    ToolFormat(
        names=("ernie45",),
        machine=replace(HERMES, ignored=("<response>", "</response>")),
        example='<tool_call>\n{"name": "f", "arguments": {"city": "Paris"}}\n</tool_call>\n',
        models="ERNIE 4.5, X1.1",
        model_types=("ernie4_5", "ernie4_5_moe"),
        frame=HERMES_FRAME,
    ),
    ToolFormat(
        names=("hermes", "qwen3_json", "qwen25", "qwen", "trinity"),
        machine=HERMES,
        example='<tool_call>\n{"name": "f", "arguments": {"city": "Paris"}}\n</tool_call>',
        models="Hermes 2 and 3, Qwen 2.5, Qwen3, Trinity",
        template_marks=("<tool_call>", '"arguments"'),
        frame=HERMES_FRAME,
    ),
)
