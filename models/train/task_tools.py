"""Calling a tool, and answering from what it returned."""

import json
import random

from models.train.samples import Message, Sample, assistant, system, user
from models.train.tool_specs import ToolUse, draw_tools

_SYSTEMS = ("You are a helpful assistant.", "Use the tools when they help.", "You are Baton.")


def _call_text(use: ToolUse) -> str:
    name = json.dumps(use.schema["function"]["name"])
    return (
        f'<tool_call>\n{{"name": {name}, "arguments": {json.dumps(use.arguments)}}}\n</tool_call>'
    )


def _opening(rng: random.Random) -> list[Message]:
    return [system(rng.choice(_SYSTEMS))] if rng.random() < 0.3 else []


def make_tool_call(rng: random.Random) -> Sample:
    """Call the one tool that a request needs."""
    uses = draw_tools(rng)
    use = rng.choice(uses)
    return Sample(
        task="tool_call",
        key=use.ask,
        messages=[*_opening(rng), user(use.ask)],
        thought=f"I need {use.schema['function']['name']}.",
        reply=_call_text(use),
        tools=[u.schema for u in uses],
    )


def make_tool_answer(rng: random.Random) -> Sample:
    """Answer from a tool's response."""
    uses = draw_tools(rng)
    use = rng.choice(uses)
    messages = [
        *_opening(rng),
        user(use.ask),
        assistant(_call_text(use)),
        {"role": "tool", "content": json.dumps(use.result)},
    ]
    return Sample(
        task="tool_answer",
        key=use.ask,
        messages=messages,
        thought="The tool has answered.",
        reply=use.answer,
        tools=[u.schema for u in uses],
    )
