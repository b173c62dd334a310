"""Chat templates get calls as they want them, tokens get to the parsers that look for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.gateway.serving import MODEL_DIR, tokenizer

from baton.gateway.chat_template import CallStyle, ChatTemplate, load_chat_template
from baton.gateway.config import GatewayConfig
from baton.gateway.dialect import load_dialect
from baton.gateway.reply import ReplyPlan, ThoughtCounter
from baton.gateway.tokenizer import load_tokenizer
from baton.protos.constraints import Thought

CALL = {"type": "function", "function": {"name": "f", "arguments": {"city": "Köln"}}}
MESSAGES = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "r"},
]
LOOP = "{% for m in messages %}[{{ m.role }}]"
END = "{{ m.content or '' }}{% endfor %}"
CALLS = "{% for c in m.tool_calls or [] %}{{ c.function.name }}"


@pytest.mark.parametrize(
    ("source", "style"),
    [
        (LOOP + CALLS + "{{ c.function.arguments | tojson }}{% endfor %}" + END, (True, False)),
        (LOOP + CALLS + "{{ ':' + c.function.arguments }}{% endfor %}" + END, (True, True)),
        (LOOP + CALLS + "{{ c.function.arguments }}{% endfor %}" + END, (True, True)),
        (
            LOOP + CALLS + "{{ c.function.arguments | tojson }}{% endfor %}{{ m.content }}"
            "{% endfor %}",
            (False, False),
        ),
        (
            LOOP + "{% if m.role == 'assistant' and m.content is none %}" + CALLS
            + "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}"
            "{% endfor %}{% endif %}" + END,
            (True, False),
        ),
    ],
)  # fmt: skip
def test_templates_get_calls_as_they_want_them(source: str, style: tuple[bool, bool]) -> None:
    template = ChatTemplate(source, {})
    assert template.call_style == CallStyle(*style)
    text = template.render(MESSAGES)
    assert "Köln" in text
    assert "None" not in text
    assert "{'" not in text


def test_another_template_for_requests_with_tools(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools[0].name }}"},
    ]
    template = load_chat_template(tmp_path, {"chat_template": named})
    assert template is not None
    assert template.render([]) == "plain"
    assert template.render([], tools=[{"name": "f"}]) == "f"
    assert "tools" in template.source


def test_the_shipped_model_speaks_hermes_and_thinks() -> None:
    dialect = load_dialect(GatewayConfig(model_dir=MODEL_DIR), tokenizer())
    assert dialect.tool is not None
    assert "hermes" in dialect.tool.names
    assert dialect.reasoning is not None
    assert "qwen3" in dialect.reasoning.names
    assert dialect.shows_tools


def test_special_tokens_that_a_parser_looks_for_stay_in_the_text(tmp_path: Path) -> None:
    source = json.loads((Path(MODEL_DIR) / "tokenizer.json").read_text())
    for token in source["added_tokens"]:
        token["special"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    special = load_tokenizer(str(tmp_path))
    ids = special.encode("<|im_start|><tool_call>x</tool_call><|im_end|>")
    assert special.decode(ids, skip_special_tokens=True) == "x"
    shown = special.showing(["<tool_call>", "</tool_call>\n"])
    assert shown.decode(ids, skip_special_tokens=True) == "<tool_call>x</tool_call>"
    assert special.decode(ids, skip_special_tokens=True) == "x"


@pytest.mark.parametrize("size", [1, 2, 9])
def test_tokens_of_thought_are_counted_between_markers_of_any_length(size: int) -> None:
    ids = [1, 8, 9, 5, 5, 7, 6, 7, 7, 9, 8, 9, 5, 7, 7]
    counter = ThoughtCounter(Thought(start_ids=(8, 9), end_ids=(7, 7)))
    for start in range(0, len(ids), size):
        counter.count(ids[start : start + size])
    assert counter.num_tokens == 5
    opened = ThoughtCounter(Thought(end_ids=(4,), open=True))
    opened.count([1, 2, 3, 4, 1])
    assert opened.num_tokens == 3


@pytest.mark.parametrize(
    ("name", "tail", "text", "said"),
    [
        ("cohere_command3", "<|START_THINKING|>", "hm<|END_THINKING|>", ("hm", "")),
        ("cohere_command3", "<|START_RESPONSE|>", "yes<|END_RESPONSE|>", ("", "yes")),
        ("inkling", "<|message_model|>", "say<|content_text|>yes<|end_message|>", ("", "yes")),
        ("kimi_k3", "<|open|>think<|sep|>", "hm<|close|>think<|sep|>", ("hm", "")),
        ("openai_gptoss", "<|start|>assistant", "<|channel|>final<|message|>yes", ("", "yes")),
        ("qwen3", "<think>\n", "hm</think>yes", ("hm", "yes")),
        ("qwen3", "</think>\n\n", "yes", ("", "yes")),
        ("qwen3", "assistant\n", "yes", ("", "yes")),
        ("qwen3", "assistant\n", "<think>hm</think>yes", ("hm", "yes")),
        ("gemma4", "<|channel>thought\n", "hm<channel|>yes", ("hm", "yes")),
    ],
)
def test_answers_begin_where_the_prompt_ended(
    name: str, tail: str, text: str, said: tuple[str, str]
) -> None:
    config = GatewayConfig(model_dir=MODEL_DIR, reasoning_parser=name)
    reader = ReplyPlan(dialect=load_dialect(config, tokenizer())).reader(tail)
    found = reader.read(text, (), last=True)
    assert (found.reasoning, found.content) == said
