"""Every format of thoughts that Baton knows."""

# DeepSeek's and Step's tokens are written with full-width bars.
# ruff: noqa: RUF001

from __future__ import annotations

from dataclasses import replace

from baton.gateway.parsers.blocks import Xtml
from baton.gateway.parsers.channels import beam_decode
from baton.gateway.parsers.formats import Bounds, ReasoningFormat
from baton.gateway.parsers.message_formats import COHERE, HARMONY, INKLING, MUSE, MUSE_GLIMMER
from baton.gateway.parsers.reasoning import ThoughtTags
from baton.gateway.parsers.tag_formats import DEEPSEEK_V4, GEMMA4, QWEN_XML

THINK = ThoughtTags()
OUTSIDE = ThoughtTags(inside=False)
_EXAMPLE = "<think>a thought</think>an answer"

REASONING_FORMATS: tuple[ReasoningFormat, ...] = (
    ReasoningFormat(
        names=("deepseek_r1", "deepseek-r1", "step5", "step3", "gigachat35"),
        machine=THINK,
        example=_EXAMPLE,
        models="DeepSeek R1, Step3, Step-5, QwQ, GigaChat 3.5",
    ),
    ReasoningFormat(
        names=("deepseek_v3", "deepseek-v3", "poolside_v1"),
        machine=OUTSIDE,
        optional=True,
        example=_EXAMPLE,
        models="DeepSeek V3.1 and V3.2, Poolside Laguna",
    ),
    ReasoningFormat(
        names=("deepseek_v41", "deepseek-v41"),
        machine=replace(THINK, calls=("<｜DSML｜ calls>",), dropped=("<｜end▁of▁sentence｜>",)),
        optional=True,
        example=_EXAMPLE,
        models="DeepSeek V4.1",
    ),
    ReasoningFormat(
        names=("deepseek_v4", "deepseek-v4"),
        machine=replace(
            OUTSIDE,
            calls=("<｜DSML｜tool_calls>", "<｜DSML｜toolcalls>", "<｜DSML｜tool>"),
            dropped=("<｜end▁of▁sentence｜>",),
        ),
        optional=True,
        example=_EXAMPLE,
        models="DeepSeek V4",
        calls=DEEPSEEK_V4,
        model_types=("deepseek_v4",),
    ),
    ReasoningFormat(
        names=("holo2",), machine=THINK, optional=True, example=_EXAMPLE, models="Holo2"
    ),
    ReasoningFormat(
        names=("minicpmv",),
        machine=replace(
            THINK,
            calls=("<tool_call>",),
            dropped=(
                "<|im_end|>",
                *(f"<{bar}reserved_{n}{bar}>" for n in range(12, 16) for bar in ("", "|")),
            ),
        ),
        example=_EXAMPLE,
        models="MiniCPM-V 4",
        model_types=("minicpmv",),
    ),
    ReasoningFormat(
        names=("mimo",),
        machine=replace(THINK, calls=("<tool_call>",)),
        example=_EXAMPLE,
        models="MiMo",
        model_types=("mimo", "mimo_v2_flash"),
    ),
    ReasoningFormat(
        names=("glm45", "glm47", "ling3"),
        machine=replace(THINK, calls=("<tool_call>",)),
        optional=True,
        example=_EXAMPLE,
        models="GLM-4.5 to GLM-5, Ling 3",
        model_types=("glm4_moe", "glm4_moe_lite", "glm_moe_dsa"),
    ),
    ReasoningFormat(
        names=("nemotron_v3", "nemotron_3"),
        machine=replace(THINK, calls=("<tool_call>",)),
        optional=True,
        example=_EXAMPLE,
        models="Nemotron 3",
        model_types=("nemotron_h",),
    ),
    ReasoningFormat(
        names=("step3p5",),
        machine=replace(THINK, calls=("<tool_call>",), tail="\n"),
        example=_EXAMPLE,
        models="Step-3.5",
        model_types=("step3p5",),
    ),
    ReasoningFormat(
        names=("granite_thinking_parser",),
        machine=replace(THINK, calls=("<tool_call>",), head="\n"),
        example="<think>a thought</think>\nan answer",
        models="Granite 4.2",
    ),
    ReasoningFormat(
        names=("granite",),
        machine=ThoughtTags(
            starts=("Here is my thought process:", "Here's my thought process:"),
            ends=("Here is my response:", "Here's my response:"),
            inside=False,
        ),
        example="Here is my thought process:a thoughtHere is my response:an answer",
        models="Granite 3.2",
        model_types=("granite",),
    ),
    ReasoningFormat(
        names=("ernie45",),
        machine=replace(THINK, wrappers=("<response>", "</response>"), head="\n", tail="\n"),
        example="a thought</think>\n<response>\nan answer</response>",
        models="ERNIE 4.5 thinking",
        model_types=("ernie4_5_moe",),
    ),
    ReasoningFormat(
        names=("gemma4", "hf", "response_template"),
        machine=ThoughtTags(
            starts=("<|channel>",),
            ends=("<channel|>",),
            labels=("thought\n",),
            calls=("<|tool_call>",),
            wrappers=("<turn|>",),
            inside=False,
            prompted=False,
            again=True,
        ),
        example="<|channel>thought\na thought<channel|>an answer",
        models="Gemma 4",
        calls=GEMMA4,
        template_marks=("<|channel>",),
        model_types=("gemma4", "gemma4_text"),
    ),
    ReasoningFormat(
        names=("hunyuan_a13b",),
        machine=ThoughtTags(
            starts=("<think>\n", "<think>"),
            ends=("</think>",),
            inside=False,
            tail="\n",
            head="\n",
            lead="\n",
            wrappers=("<answer>\n", "<answer>", "\n</answer>", "</answer>"),
        ),
        example="<think>\na thought\n</think>\n<answer>\nan answer\n</answer>",
        models="Hunyuan A13B",
        model_types=("hunyuan_v1_moe",),
    ),
    ReasoningFormat(
        names=("hy_v3", "hy_v4", "hunyuan"),
        machine=replace(OUTSIDE, calls=("<tool_calls>",)),
        optional=True,
        example=_EXAMPLE,
        models="Hunyuan V3, V4",
    ),
    ReasoningFormat(
        names=("k2_horizon",),
        machine=ThoughtTags(
            starts=("<ifm|think>", "<ifm|think_fast>", "<ifm|think_faster>"),
            ends=("</ifm|think>", "</ifm|think_fast>", "</ifm|think_faster>"),
            calls=("<ifm|tool_calls>", "<ifm|tool_call>"),
        ),
        example="<ifm|think>a thought</ifm|think>an answer",
        models="K2 Horizon",
        template_marks=("<ifm|think>",),
    ),
    ReasoningFormat(
        names=("kimi_k2",),
        machine=replace(THINK, calls=("<|tool_calls_section_begin|>",)),
        example=_EXAMPLE,
        models="Kimi K2 Thinking, K2.5",
        model_types=("kimi_k2", "kimi_k25"),
    ),
    ReasoningFormat(
        names=("kimi",),
        machine=ThoughtTags(starts=("◁think▷",), ends=("◁/think▷",), inside=False),
        example="◁think▷a thought◁/think▷an answer",
        models="Kimi-VL Thinking",
        template_marks=("◁think▷",),
    ),
    ReasoningFormat(
        names=("kimi_k3",),
        machine=Xtml(raw_calls=True),
        example="<|open|>think<|sep|>a thought<|close|>think<|sep|><|open|>response<|sep|>"
        "an answer<|close|>response<|sep|>",
        models="Kimi K3",
        template_marks=("<|open|>", "<|sep|>"),
    ),
    ReasoningFormat(
        names=("minimax_m2",),
        machine=replace(THINK, calls=("<minimax:tool_call>",)),
        example="a thought</think>an answer",
        models="MiniMax M2",
        model_types=("minimax_m2",),
    ),
    ReasoningFormat(
        names=("minimax_m2_append_think", "minimax-append-think"),
        machine=ThoughtTags(prefix="<think>"),
        example="a thought</think>an answer",
        models="MiniMax M2, thoughts left in the content",
    ),
    ReasoningFormat(
        names=("minimax_m3", "minimax-m3"),
        machine=ThoughtTags(
            starts=("<mm:think>",),
            ends=("</mm:think>",),
            calls=("]<]minimax[>[<tool_call>",),
            inside=False,
            stray=False,
        ),
        example="<mm:think>a thought</mm:think>an answer",
        models="MiniMax M3",
        template_marks=("<mm:think>",),
    ),
    ReasoningFormat(
        names=("mistral",),
        machine=ThoughtTags(
            starts=("[THINK]",),
            ends=("[/THINK]",),
            calls=("[TOOL_CALLS]",),
            inside=False,
            prompted=False,
            again=True,
        ),
        example="[THINK]a thought[/THINK]an answer",
        models="Magistral, Mistral Small 4, Ministral 3",
        template_marks=("[THINK]",),
    ),
    ReasoningFormat(
        names=("olmo3",),
        machine=THINK,
        example=_EXAMPLE,
        models="OLMo 3",
        model_types=("olmo3",),
    ),
    ReasoningFormat(
        names=("seed_oss",),
        machine=ThoughtTags(
            starts=("<seed:think>",), ends=("</seed:think>",), calls=("<seed:tool_call>",)
        ),
        example="<seed:think>a thought</seed:think>an answer",
        models="Seed-OSS",
        template_marks=("<seed:think>",),
        model_types=("seed_oss",),
    ),
    ReasoningFormat(
        names=("apertus2509", "apertus"),
        machine=ThoughtTags(
            starts=("<|inner_prefix|>",),
            ends=("<|inner_suffix|>",),
            calls=("<|tools_prefix|>",),
            inside=False,
            again=True,
        ),
        example="<|inner_prefix|>a thought<|inner_suffix|>an answer",
        models="Apertus",
        template_marks=("<|inner_prefix|>",),
        model_types=("apertus",),
    ),
    ReasoningFormat(
        names=("plamo3",),
        machine=ThoughtTags(
            starts=("<|plamo:begin_think:plamo|>",),
            ends=("<|plamo:end_think:plamo|>",),
            calls=("<|plamo:begin_tool_requests:plamo|>",),
            again=True,
            drops_partial=True,
        ),
        optional=True,
        example="<|plamo:begin_think:plamo|>a thought<|plamo:end_think:plamo|>an answer",
        models="PLaMo 3",
        template_marks=("<|plamo:begin_think:plamo|>",),
        model_types=("plamo3",),
    ),
    ReasoningFormat(
        names=("openai_gptoss", "gpt-oss", "harmony"),
        machine=replace(HARMONY, raw_calls=True),
        example="<|channel|>analysis<|message|>a thought<|end|><|start|>assistant<|channel|>final"
        "<|message|>an answer<|return|>",
        models="gpt-oss",
        template_marks=("<|channel|>", "<|message|>"),
        model_types=("gpt_oss",),
        # Whatever comes before the final channel is thought.
        around=Bounds(
            "",
            "<|channel|>final<|message|>",
            before_end="<|end|><|start|>assistant",
            always=True,
        ),
    ),
    ReasoningFormat(
        names=("beam",),
        machine=replace(HARMONY, decode=beam_decode, raw_calls=True),
        example="<|channel|>analysis<|message|>a thought<|end|><|start|>assistant<|channel|>final"
        "<|message|>an answer<|return|>",
        models="Beam",
    ),
    ReasoningFormat(
        names=("muse", "musespark1x"),
        machine=replace(MUSE, raw_calls=True),
        example=" to=self<|message|>a thought<|eom|><|start|>assistant to=user<|message|>"
        "an answer<|eot|>",
        models="Muse Spark",
        template_marks=("<atem:function_calls>",),
    ),
    ReasoningFormat(
        names=("muse_glimmer",),
        machine=replace(MUSE_GLIMMER, raw_calls=True),
        example=" to=self<|message|>a thought<|eom|><|start|>assistant to=user<|message|>"
        "an answer<|eot|>",
        models="Muse Glimmer",
        model_types=("muse_glimmer",),
    ),
    ReasoningFormat(
        names=("inkling",),
        machine=replace(INKLING, raw_calls=True),
        example="<|content_thinking|>a thought<|end_message|><|message_model|><|content_text|>"
        "an answer<|end_message|>",
        models="Inkling",
        template_marks=("<|content_thinking|>",),
    ),
    ReasoningFormat(
        names=("cohere_command3", "cohere_command4"),
        machine=replace(COHERE, raw_calls=True),
        example="<|START_THINKING|>a thought<|END_THINKING|><|START_RESPONSE|>an answer"
        "<|END_RESPONSE|>",
        models="Command A Reasoning, Command A Plus",
        template_marks=("<|START_THINKING|>",),
        model_types=("cohere2", "cohere2_moe"),
    ),
    ReasoningFormat(
        names=("qwen3", "qwen3-thinking", "dots", "minimax", "nanbeige", "interns1", "iquest_q1"),
        machine=replace(THINK, calls=("<tool_call>",)),
        example=_EXAMPLE,
        calls=QWEN_XML,
        models="Qwen3, Qwen3.5, QwQ, dots, Nanbeige, Intern-S1",
        template_marks=("<think>", "</think>"),
    ),
)
