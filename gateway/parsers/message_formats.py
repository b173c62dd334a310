"""Formats whose answers are made of messages or blocks: thoughts, content and calls in one."""

from __future__ import annotations

from dataclasses import replace

from baton.gateway.parsers.blocks import Blocks, Xtml
from baton.gateway.parsers.channels import (
    Channels,
    beam_decode,
    harmony_decode,
    harmony_route,
    muse_decode,
    muse_route,
)
from baton.gateway.parsers.formats import CallFrame, ToolFormat

HARMONY = Channels(
    starts=("<|start|>", "<|channel|>"),
    message="<|message|>",
    ends=("<|end|>", "<|call|>", "<|return|>"),
    others=("<|constrain|>",),
    route=harmony_route,
    decode=harmony_decode,
    joiner="\n",
)
MUSE = Channels(
    starts=("<|start|>",),
    message="<|message|>",
    ends=("<|eom|>", "<|eot|>"),
    route=muse_route(unaddressed="reasoning"),
    decode=muse_decode(schema_first=True),
)
MUSE_GLIMMER = replace(
    MUSE, route=muse_route(unaddressed="content"), decode=muse_decode(schema_first=False)
)
COHERE = Blocks(
    kinds=(
        ("<|START_THINKING|>", "reasoning"),
        ("<|START_ACTION|>", "calls"),
        ("<|START_RESPONSE|>", "content"),
        ("<|START_TEXT|>", "content"),
    ),
    ends=("<|END_THINKING|>", "<|END_ACTION|>", "<|END_RESPONSE|>", "<|END_TEXT|>"),
    cited=True,
)
INKLING = Blocks(
    kinds=(
        ("<|message_model|>", "skip"),
        ("<|content_thinking|>", "reasoning"),
        ("<|content_invoke_tool_json|>", "calls"),
        ("<|content_text|>", "content"),
        ("<|content_invoke_tool_text|>", "content"),
        ("<|content_tool_error|>", "content"),
    ),
    ends=("<|end_message|>", "<|content_model_end_sampling|>"),
    named=True,
)

MESSAGE_FORMATS: tuple[ToolFormat, ...] = (
    ToolFormat(
        names=("beam",),
        machine=replace(HARMONY, decode=beam_decode),
        example="<|start|>assistant to=f<|channel|>analysis <|constrain|>xml<|message|>"
        '<rfl:parameter name="city">\nParis\n</rfl:parameter><|call|>',
        models="Beam",
        template_marks=("<rfl:parameter",),
        thinks=("beam",),
    ),
    ToolFormat(
        names=("openai", "gpt-oss", "harmony"),
        machine=HARMONY,
        example="<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
        '{"city": "Paris"}<|call|>',
        models="gpt-oss",
        template_marks=("<|channel|>", "<|constrain|>"),
        model_types=("gpt_oss",),
        thinks=("openai_gptoss",),
    ),
    ToolFormat(
        names=("muse", "musespark1x"),
        machine=MUSE,
        example='<|start|>assistant to=f<|message|><atem:function_calls>\n<atem:invoke name="f">\n'
        '<atem:parameter name="city">Paris</atem:parameter>\n</atem:invoke>\n'
        "</atem:function_calls><|eot|>",
        models="Muse Spark",
        template_marks=("<atem:function_calls>",),
        thinks=("muse",),
    ),
    ToolFormat(
        names=("muse_glimmer",),
        machine=MUSE_GLIMMER,
        example='<|start|>assistant to=f<|message|><atem:function_calls>\n<atem:invoke name="f">\n'
        '<atem:parameter name="city">Paris</atem:parameter>\n</atem:invoke>\n'
        "</atem:function_calls><|eot|>",
        models="Muse Glimmer",
        model_types=("muse_glimmer",),
        thinks=("muse_glimmer",),
    ),
    ToolFormat(
        names=("inkling",),
        machine=INKLING,
        example='<|content_invoke_tool_json|>{"name": "f", "args": {"city": "Paris"}}'
        "<|end_message|>",
        models="Inkling",
        template_marks=("<|content_invoke_tool_json|>",),
        thinks=("inkling",),
        frame=CallFrame(
            begin='<|content_invoke_tool_json|>{"name": $quoted, "args": ',
            end="}<|end_message|>",
            separator="",
            trigger="<|content_invoke_tool_json|>",
        ),
    ),
    ToolFormat(
        names=("cohere_command3", "cohere_command4"),
        machine=COHERE,
        example='<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "f", "parameters": '
        '{"city": "Paris"}}]<|END_ACTION|>',
        models="Command A, Command A Plus",
        template_marks=("<|START_ACTION|>",),
        model_types=("cohere2", "cohere2_moe"),
        thinks=("cohere_command3",),
        frame=CallFrame(
            opening="<|START_ACTION|>[\n    ",
            # A grammar cannot count calls, as their ids have to.
            begin='{"tool_call_id": "0", "tool_name": $quoted, "parameters": ',
            end="}",
            closing="\n]<|END_ACTION|>",
            trigger="<|START_ACTION|>",
            several=False,
        ),
    ),
    ToolFormat(
        names=("kimi_k3",),
        machine=Xtml(),
        example='<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|><|open|>argument '
        'key="city" type="string"<|sep|>Paris<|close|>argument<|sep|><|close|>call<|sep|>'
        "<|close|>tools<|sep|>",
        models="Kimi K3",
        template_marks=("<|open|>", "<|sep|>"),
        thinks=("kimi_k3",),
    ),
)
