"""Formats of tool calls that are written in tags, or between markers in a notation of their own."""

# DeepSeek's and Step's tokens are written with full-width bars.
# ruff: noqa: RUF001

from __future__ import annotations

from dataclasses import replace

from baton.gateway.parsers.body_calls import BodyCalls, gemma, minimax_m3
from baton.gateway.parsers.formats import CallFrame, ToolFormat
from baton.gateway.parsers.xml_calls import XmlCalls

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


DEEPSEEK_V4 = _dsml("tool_calls", "", "toolcalls", "tool")
GEMMA4 = BodyCalls(
    starts=("<|tool_call>",),
    ends=("<tool_call|>", "<|tool_response>"),
    quotes=('<|"|>',),
    decode=gemma('<|"|>', bare_names=True),
    ignored=("<turn|>", "<|turn>"),
)
_M3 = "]<]minimax[>["

TAG_FORMATS: tuple[ToolFormat, ...] = (
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
        names=("mimo",),
        machine=replace(QWEN_XML, trim="none"),
        example="<tool_call><function=f><parameter=city>Paris</parameter></function></tool_call>",
        models="MiMo",
        model_types=("mimo", "mimo_v2_flash"),
    ),
    ToolFormat(
        names=("step3p5", "step5"),
        machine=QWEN_XML,
        example="<tool_call>\n<function=f>\n<parameter=city>\nParis\n</parameter>\n</function>\n"
        "</tool_call>",
        models="Step-3.5, Step-5",
        calls_last=True,
        model_types=("step3p5", "step5"),
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
        names=("minimax_m2", "minimax-m2"),
        machine=replace(
            INVOKE,
            sections=("<minimax:tool_call>",),
            section_ends=("</minimax:tool_call>",),
            ignored=("</think>",),
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
            cut=False,
            end_after=f"{_M3}</invoke>",
        ),
        example=f'{_M3}<tool_call>{_M3}<invoke name="f">{_M3}<city>Paris{_M3}</city>'
        f"{_M3}</invoke>{_M3}</tool_call>",
        models="MiniMax M3",
        calls_last=True,
        template_marks=(_M3,),
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
            cut="content",
        ),
        example="<ifm|tool_calls><ifm|tool_call>f<ifm|arg_key>city</ifm|arg_key><ifm|arg_value>"
        "Paris</ifm|arg_value></ifm|tool_call></ifm|tool_calls>",
        models="K2 Horizon",
        template_marks=("<ifm|tool_calls>",),
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
        names=("poolside_v1",),
        machine=replace(GLM, cut="drop"),
        example="<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        models="Poolside Laguna",
    ),
    ToolFormat(
        names=("ling3", "spark25"),
        machine=GLM,
        example="<tool_call>f<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>",
        models="Ling 3, Spark 2.5",
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
        names=("deepseek_v32", "deepseekv32"),
        machine=_dsml("function_calls"),
        example='<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n'
        '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        models="DeepSeek V3.2",
        calls_last=True,
        template_marks=("｜DSML｜function_calls",),
        model_types=("deepseek_v32",),
    ),
    ToolFormat(
        names=("deepseek_v4", "deepseekv4"),
        machine=DEEPSEEK_V4,
        calls_last=True,
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
        calls_last=True,
        template_marks=("｜DSML｜ calls",),
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
        names=("hf", "response_template"),
        machine=replace(GEMMA4, decode=gemma('<|"|>', typed=True), cut=False, whole="}"),
        example='<|tool_call>call:f{city:<|"|>Paris<|"|>}<tool_call|>',
        models="Gemma 4, by its response template",
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
        names=("granite",),
        machine=replace(
            QWEN_XML, sections=("<|tool_call|>", "<tool_call>"), json_section=True, cut="content"
        ),
        example='<|tool_call|> [{"name": "f", "arguments": {"city": "Paris"}}]',
        models="Granite 3.0 to 3.3",
        template_marks=("<|tool_call|>",),
        model_types=("granite",),
        frame=CallFrame(
            opening="<|tool_call|>[",
            begin='{"name": $quoted, "arguments": ',
            end="}",
            separator=", ",
            closing="]",
            trigger="<|tool_call|>",
        ),
    ),
    ToolFormat(
        names=("qwen3_coder", "qwen3_xml", "nanbeige"),
        machine=QWEN_XML,
        example="<tool_call>\n<function=f>\n<parameter=city>\nParis\n</parameter>\n</function>\n"
        "</tool_call>",
        models="Qwen3-Coder, Qwen3-Next, Qwen3.5, Nemotron 3, Nanbeige",
        template_marks=("<function=", "<parameter="),
    ),
)
