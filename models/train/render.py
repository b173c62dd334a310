"""Turn a sample into prompt and target text with the shipped chat template."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from models.train.samples import Sample

TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def _tojson(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@cache
def _template() -> Template:
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = _tojson
    return env.from_string(TEMPLATE.read_text().replace("\n", ""))


def render(sample: Sample, *, thinking: bool) -> tuple[str, str]:
    """Return the prompt that a server would send and the reply that is to follow it."""
    prompt = _template().render(
        messages=sample.messages,
        tools=sample.tools or None,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    thought = f"<think>\n{sample.thought}\n</think>\n\n" if thinking else ""
    return prompt, f"{thought}{sample.reply}<|im_end|>"
