"""Every format of tool calls that Baton knows."""

# DeepSeek's and Step's tokens are written with full-width bars.
# ruff: noqa: RUF001

from __future__ import annotations

from dataclasses import replace

from baton.gateway.parsers.blocks import Blocks, Xtml
from baton.gateway.parsers.body_calls import BodyCalls, gemma, minimax_m3
from baton.gateway.parsers.channels import (
    Channels,
    beam_decode,
    harmony_decode,
    harmony_route,
    muse_decode,
    muse_route,
)
from baton.gateway.parsers.formats import ToolFormat
from baton.gateway.parsers.json_calls import JsonCalls
from baton.gateway.parsers.pythonic import PythonCalls
from baton.gateway.parsers.section_calls import NamedJson, SectionCalls
from baton.gateway.parsers.xml_calls import XmlCalls

HERMES = JsonCalls(starts=("<tool_call>",), ends=("</tool_call>",))
QWEN_XML = XmlCalls(
    sections=("<tool_call>",),
    section_ends=("</tool_call>",),
    ignored=("<|im_end|>",),
)
GLM = XmlCalls(
    calls=("<tool_call>",),
    name_ends=("\n", "\\n"),
    call_ends=("</tool_call>",),
    params=("<arg_key>",),
    key_end="</arg_key>",
    value_start="<arg_value>",
    param_end="</arg_value>",
    next_param_ends=False,
    trim="none",
)
HY = replace(
    GLM,
    sections=("<tool_calls>",),
    section_ends=("</tool_calls>",),
    name_ends=("<tool_sep>",),
    bare=False,
)
INVOKE = XmlCalls(
    calls=("<invoke name=",),
    call_ends=("</invoke>",),
    params=("<parameter name=",),
    attributes=True,
    trim="none",
)


def _dsml(section: str, space: str = "", *sections: str) -> XmlCalls:
    """DeepSeek's tags: each name follows `｜DSML｜`, and in V4.1 a space."""
    mark = f"｜DSML｜{space}"
    names = (section, *sections)
    return XmlCalls(
        sections=tuple(f"<{mark}{name}>" for name in names),
        section_ends=tuple(f"</{mark}{name}>" for name in names),
        calls=(f"<{mark}invoke name=",),
        call_ends=(f"</{mark}invoke>",),
        params=(f"<{mark}parameter name=",),
        param_end=f"</{mark}parameter>",
        attributes=True,
        json_body=True,
        wrappers=("arguments", "input"),
        trim="none",
        ignored=("<｜end▁of▁sentence｜>",),
    )


DEEPSEEK = SectionCalls(
    sections=("<｜tool▁calls▁begin｜>",),
    section_ends=("<｜tool▁calls▁end｜>",),
    calls=("<｜tool▁call▁begin｜>",),
    separators=("<｜tool▁sep｜>",),
    call_ends=("<｜tool▁call▁end｜>",),
)
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
    ),
    cut="call",
    drops_partial=True,
    ignored=("<|plamo:tag|>",),
)
GEMMA4 = BodyCalls(
    starts=("<|tool_call>",),
    ends=("<tool_call|>", "<|tool_response>"),
    quotes=('<|"|>',),
    decode=gemma('<|"|>'),
    ignored=("<turn|>", "<|turn>"),
)
_M3 = "]<]minimax[>["

TOOL_FORMATS: tuple[ToolFormat, ...] = (
    ToolFormat(
        names=("hermes", "qwen3_json", "qwen25", "qwen", "trinity"),
        machine=HERMES,
        example='<tool_call>\n{"name": "f", "arguments": {"city": "Paris"}}\n</tool_call>',
        models="Hermes 2 and 3, Qwen 2.5, Qwen3, Trinity",
        template_marks=("<tool_call>", '"arguments"'),
    ),
    ToolFormat(
        names=("qwen3_coder", "qwen3_xml", "nanbeige"),
        machine=QWEN_XML,
        example="<tool_call>\n<function=f>\n<parameter=city>\nParis\n</parameter>\n</function>\n"
        "</tool_call>",
        models="Qwen3-Coder, Qwen3-Next, Qwen3.5, Nemotron 3, Nanbeige",
        template_marks=("<function=", "<parameter="),
    ),
    ToolFormat(
        names=("step3p5", "step5"),
        machine=QWEN_XML,
        example="<tool_call>\n<function=f>\n<parameter=city>\nParis\n</parameter>\n</function>\n"
        "</tool_call>",
        models="Step-3.5, Step-5",
        model_types=("step3p5", "step5"),
    ),
    ToolFormat(
        names=("mimo",),
        machine=replace(QWEN_XML, trim="none"),
        example="<tool_call><function=f><parameter=city>Paris</parameter></function></tool_call>",
        models="MiMo",
        model_types=("mimo", "mimo_v2_flash"),
    ),
    ToolFormat(
        names=("seed_oss",),
        machine=replace(
            QWEN_XML, sections=("<seed:tool_call>",), section_ends=("</seed:tool_call>",)
        ),
        example="<seed:tool_call>\n<function=f>\n<parameter=city>Paris</parameter>\n</function>\n"
        "</seed:tool_call>",
        models="Seed-OSS",
        template_marks=("<seed:tool_call>",),
        model_types=("seed_oss",),
    ),
    ToolFormat(
        names=("llama3_json", "llama4_json", "llama3"),
        machine=JsonCalls(starts=("<|python_tag|>",), bare="{", between=(";",)),
        example='{"name": "f", "parameters": {"city": "Paris"}}',
        models="Llama 3.1 to 3.3, Llama 4 (JSON template)",
        template_marks=("<|python_tag|>",),
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
        template_marks=("[TOOL_CALLS]",),
        model_types=("mistral", "mistral3", "ministral3"),
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
    ),
    ToolFormat(
        names=("deepseek_v31", "deepseekv31"),
        machine=DEEPSEEK,
        example="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>"
        '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        models="DeepSeek V3.1",
        template_marks=("<｜tool▁calls▁begin｜>",),
    ),
    ToolFormat(
        names=("deepseek_v32", "deepseekv32"),
        machine=_dsml("function_calls"),
        example='<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="city" '
        'string="true">Paris</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        models="DeepSeek V3.2",
        template_marks=("｜DSML｜function_calls",),
        model_types=("deepseek_v32",),
    ),
    ToolFormat(
        names=("deepseek_v4", "deepseekv4"),
        machine=_dsml("tool_calls", "", "toolcalls", "tool"),
        example='<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="city" '
        'string="true">Paris</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>',
        models="DeepSeek V4",
        template_marks=("｜DSML｜tool_calls",),
        model_types=("deepseek_v4",),
    ),
    ToolFormat(
        names=("deepseek_v41", "deepseekv41"),
        machine=_dsml("calls", " "),
        example='<｜DSML｜ calls>\n<｜DSML｜ invoke name="f">\n<｜DSML｜ parameter name="city" '
        'string="true">Paris</｜DSML｜ parameter>\n</｜DSML｜ invoke>\n</｜DSML｜ calls>',
        models="DeepSeek V4.1",
        template_marks=("｜DSML｜ calls",),
    ),
    ToolFormat(
        names=("glm45", "glm47", "glm"),
        machine=GLM,
        example="<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        models="GLM-4.5, 4.6, 4.7, GLM-5",
        template_marks=("<arg_key>", "<arg_value>"),
        model_types=("glm4_moe", "glm4_moe_lite", "glm_moe_dsa"),
    ),
    ToolFormat(
        names=("ling3", "spark25"),
        machine=GLM,
        example="<tool_call>f<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>",
        models="Ling 3, Spark 2.5",
    ),
    ToolFormat(
        names=("poolside_v1",),
        machine=replace(GLM, cut="drop"),
        example="<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        models="Poolside Laguna",
    ),
    ToolFormat(
        names=("hy_v3", "hy_v4", "hunyuan"),
        machine=HY,
        example="<tool_calls><tool_call>f<tool_sep><arg_key>city</arg_key>"
        "<arg_value>Paris</arg_value></tool_call></tool_calls>",
        models="Hunyuan V3, V4",
        template_marks=("<tool_sep>", "<arg_key>"),
    ),
    ToolFormat(
        names=("k2_horizon",),
        machine=XmlCalls(
            sections=("<ifm|tool_calls>",),
            section_ends=("</ifm|tool_calls>",),
            calls=("<ifm|tool_call>",),
            name_ends=(),
            call_ends=("</ifm|tool_call>",),
            params=("<ifm|arg_key>",),
            key_end="</ifm|arg_key>",
            value_start="<ifm|arg_value>",
            param_end="</ifm|arg_value>",
            type_tags=("<ifm|arg_type>", "</ifm|arg_type>"),
            json_call=True,
            trim="none",
        ),
        example="<ifm|tool_calls><ifm|tool_call>f<ifm|arg_key>city</ifm|arg_key><ifm|arg_value>"
        "Paris</ifm|arg_value></ifm|tool_call></ifm|tool_calls>",
        models="K2 Horizon",
        template_marks=("<ifm|tool_calls>",),
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
        ),
        example="<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
        '<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|><|tool_calls_section_end|>',
        models="Kimi K2, K2 Thinking, K2.5",
        template_marks=("<|tool_calls_section_begin|>",),
        model_types=("kimi_k2", "kimi_k25"),
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
    ToolFormat(
        names=("minimax_m2", "minimax-m2"),
        machine=replace(
            INVOKE, sections=("<minimax:tool_call>",), section_ends=("</minimax:tool_call>",)
        ),
        example='<minimax:tool_call><invoke name="f"><parameter name="city">Paris</parameter>'
        "</invoke></minimax:tool_call>",
        models="MiniMax M2",
        template_marks=("<minimax:tool_call>",),
        model_types=("minimax_m2",),
    ),
    ToolFormat(
        names=("minimax_m3", "minimax-m3"),
        machine=BodyCalls(
            starts=(f"{_M3}<tool_call>",),
            ends=(f"{_M3}</tool_call>",),
            decode=minimax_m3(_M3),
        ),
        example=f'{_M3}<tool_call>{_M3}<invoke name="f">{_M3}<city>Paris{_M3}</city>'
        f"{_M3}</invoke>{_M3}</tool_call>",
        models="MiniMax M3",
        template_marks=(_M3,),
    ),
    ToolFormat(
        names=("dots",),
        machine=replace(
            INVOKE,
            sections=("<dots_function_call>",),
            section_ends=("</dots_function_call>",),
            json_section=True,
            special=True,
            bare=False,
            untyped="json",
            unknown="content",
            cut="content",
        ),
        example='<dots_function_call><invoke name="f"><parameter name="city">Paris</parameter>'
        "</invoke></dots_function_call>",
        models="dots.llm",
        template_marks=("<dots_function_call>",),
    ),
    ToolFormat(
        names=("step3",),
        machine=XmlCalls(
            sections=("<｜tool_calls_begin｜>",),
            section_ends=("<｜tool_calls_end｜>",),
            calls=("<steptml:invoke name=",),
            call_ends=("</steptml:invoke>",),
            params=("<steptml:parameter name=",),
            param_end="</steptml:parameter>",
            attributes=True,
            bare=False,
            trim="none",
            cut="content",
            between=("<｜tool_call_begin｜>", "<｜tool_call_end｜>", "function<｜tool_sep｜>"),
        ),
        example="<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜>"
        '<steptml:invoke name="f"><steptml:parameter name="city">Paris</steptml:parameter>'
        "</steptml:invoke><｜tool_call_end｜><｜tool_calls_end｜>",
        models="Step3",
        template_marks=("<steptml:",),
        model_types=("step3_vl", "step3_text"),
    ),
    ToolFormat(
        names=("minicpm5",),
        machine=XmlCalls(
            calls=("<function name=", "<functionname=", "<functionĠname="),
            params=("<param name=", "<paramname=", "<paramĠname="),
            param_end="</param>",
            trim="none",
            untyped="json",
            cdata=True,
            wrappers=("properties", "arguments", "parameters"),
            unknown="content",
            cut="content",
        ),
        example='<function name="f"><param name="city">Paris</param></function>',
        models="MiniCPM5",
        template_marks=("<function name=", "<param name="),
    ),
    ToolFormat(
        names=("granite",),
        machine=replace(
            QWEN_XML, sections=("<|tool_call|>", "<tool_call>"), json_section=True, cut="content"
        ),
        example='<|tool_call|> [{"name": "f", "arguments": {"city": "Paris"}}]',
        models="Granite 3.0 to 3.3",
        template_marks=("<|tool_call|>",),
        model_types=("granite",),
    ),
    ToolFormat(
        names=("granite4",),
        machine=HERMES,
        example='<tool_call>\n{"name": "f", "arguments": {"city": "Paris"}}\n</tool_call>',
        models="Granite 4",
        model_types=("granitemoehybrid",),
    ),
    ToolFormat(
        names=("granite-20b-fc",),
        machine=JsonCalls(starts=("<function_call>",)),
        example='<function_call> {"name": "f", "arguments": {"city": "Paris"}}',
        models="Granite 20B function calling",
        template_marks=("<function_call>",),
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
    ),
    ToolFormat(
        names=("jamba", "hunyuan_a13b"),
        machine=JsonCalls(starts=("<tool_calls>",), ends=("</tool_calls>",)),
        example='<tool_calls>[{"name": "f", "arguments": {"city": "Paris"}}]</tool_calls>',
        models="Jamba 1.5 and later, Hunyuan A13B",
        template_marks=("<tool_calls>",),
        model_types=("jamba", "hunyuan_v1_moe"),
    ),
    ToolFormat(
        names=("longcat",),
        machine=JsonCalls(starts=("<longcat_tool_call>",), ends=("</longcat_tool_call>",)),
        example='<longcat_tool_call>{"name": "f", "arguments": {"city": "Paris"}}'
        "</longcat_tool_call>",
        models="LongCat-Flash",
        template_marks=("<longcat_tool_call>",),
        model_types=("longcat_flash",),
    ),
    ToolFormat(
        names=("iquest_q1",),
        machine=JsonCalls(starts=("<iquest_tool_call>",), ends=("</iquest_tool_call>",)),
        example='<iquest_tool_call>{"name": "f", "arguments": {"city": "Paris"}}'
        "</iquest_tool_call>",
        models="IQuest Q1",
        template_marks=("<iquest_tool_call>",),
    ),
    ToolFormat(
        names=("ernie45",),
        machine=replace(HERMES, ignored=("<response>", "</response>")),
        example='<tool_call>\n{"name": "f", "arguments": {"city": "Paris"}}\n</tool_call>\n',
        models="ERNIE 4.5, X1.1",
        model_types=("ernie4_5", "ernie4_5_moe"),
    ),
    ToolFormat(
        names=("phi4_mini_json",),
        machine=JsonCalls(starts=("functools",)),
        example='functools[{"name": "f", "arguments": {"city": "Paris"}}]',
        models="Phi-4 mini",
        template_marks=("functools",),
    ),
    ToolFormat(
        names=("xlam",),
        machine=JsonCalls(
            starts=("[TOOL_CALLS]", "<tool_call>", "```json\n"),
            ends=("</tool_call>", "\n```"),
            bare="[{",
        ),
        example='[{"name": "f", "arguments": {"city": "Paris"}}]',
        models="xLAM 1 and 2",
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
    ),
    ToolFormat(
        names=("functiongemma",),
        machine=BodyCalls(
            starts=("<start_function_call>",),
            ends=("<end_function_call>",),
            quotes=("<escape>",),
            decode=gemma("<escape>"),
        ),
        example="<start_function_call>call:f{city:<escape>Paris<escape>}<end_function_call>",
        models="FunctionGemma",
        template_marks=("<start_function_call>",),
    ),
    ToolFormat(
        names=("hf", "response_template"),
        machine=replace(GEMMA4, decode=gemma('<|"|>', typed=True), cut=False),
        example='<|tool_call>call:f{city:<|"|>Paris<|"|>}<tool_call|>',
        models="Gemma 4, by its response template",
    ),
    ToolFormat(
        names=("gemma4",),
        machine=GEMMA4,
        example='<|tool_call>call:f{city:<|"|>Paris<|"|>}<tool_call|>',
        models="Gemma 4",
        template_marks=("<|tool_call>",),
        model_types=("gemma4", "gemma4_text"),
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
        names=("beam",),
        machine=replace(HARMONY, decode=beam_decode),
        example="<|start|>assistant to=f<|channel|>analysis <|constrain|>xml<|message|>"
        '<rfl:parameter name="city">\nParis\n</rfl:parameter><|call|>',
        models="Beam",
        template_marks=("<rfl:parameter",),
        thinks=("beam",),
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
    ),
)
