"""How the served model writes thoughts and calls: its formats, found once at start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.gateway.config import AUTO, NO_PARSER, GatewayConfig
from baton.gateway.parsers.formats import ReasoningFormat, ToolFormat, thinking_of
from baton.gateway.parsers.plugins import load_registry
from baton.gateway.parsers.registry import Detected, ParserRegistry
from baton.gateway.tokenizer import Tokenizer
from baton.protos.constraints import Thought

# How much of a prompt's end tells whether it opened a thought.
PROMPT_TAIL_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtIds:
    """The tokens that begin and end a thought, and what is written before the end of one that is
    cut short.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    before_end: tuple[int, ...]
    always: bool

    def within(self, budget: int | None) -> tuple[int | None, tuple[int, ...]]:
        """The budget of what the model itself thinks, and how the thought is closed over it: both
        together take no more than `budget`.
        """
        if budget is None:
            return None, ()
        if budget < len(self.before_end):
            return budget, self.end
        return budget - len(self.before_end), (*self.before_end, *self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The formats of one model. `text` decodes answers and keeps the markers that they look for.

    `thought`: None where the model thinks not, or writes its markers in no fixed tokens.
    """

    tool: ToolFormat | None
    reasoning: ReasoningFormat | None
    text: Tokenizer
    thought: ThoughtIds | None

    @property
    def shows_tools(self) -> bool:
        """Whether the chat template has a place for tools."""
        template = self.text.chat_template
        return template is not None and "tools" in template.source

    def thought_of(
        self, prompt_tail: str, kwargs: Mapping[str, Any], budget: int | None
    ) -> Thought | None:
        """What a worker needs to know of one request's thought; None if there can be none."""
        ids, form = self.thought, self.reasoning
        if ids is None or form is None:
            return None
        opened = form.opened_by(prompt_tail)
        if opened is None and form.optional and thinking_of(kwargs) is False:
            return None
        budget, close = ids.within(budget)
        return Thought(
            start_ids=ids.start,
            end_ids=ids.end,
            open=bool(opened) or ids.always,
            budget=budget,
            close_ids=close,
        )


def load_dialect(config: GatewayConfig, tokenizer: Tokenizer) -> Dialect:
    """The configured formats, or those of the chat template. Raises ConfigError for unknown
    names.
    """
    registry = load_registry(map(Path, config.tool_parser_plugins))
    template = tokenizer.chat_template
    found = registry.detect(tokenizer.facts.model_type, template.source if template else None)
    if template is None:
        found = Detected(None, None)
    tool_name = _chosen(config.tool_call_parser, found.tool)
    reasoning_name = _chosen(config.reasoning_parser, found.reasoning)
    tool = registry.tool(tool_name) if tool_name else None
    reasoning = registry.reasoning(reasoning_name) if reasoning_name else None
    markers = (*(tool.machine.markers if tool else ()), *(_markers(reasoning)))
    return Dialect(
        tool=tool,
        reasoning=reasoning,
        text=tokenizer.showing(markers),
        thought=_thought_ids(reasoning, tokenizer),
    )


def check_parsers(config: GatewayConfig) -> None:
    """Raises ConfigError for a parser that does not exist or a plugin that does not load."""
    registry: ParserRegistry = load_registry(map(Path, config.tool_parser_plugins))
    if config.tool_call_parser not in (AUTO, NO_PARSER):
        registry.tool(config.tool_call_parser)
    if config.reasoning_parser not in (AUTO, NO_PARSER):
        registry.reasoning(config.reasoning_parser)


def _chosen(wanted: str, detected: str | None) -> str | None:
    if wanted == NO_PARSER:
        return None
    return detected if wanted == AUTO else wanted


def _markers(form: ReasoningFormat | None) -> tuple[str, ...]:
    return form.machine.markers if form is not None else ()


def _thought_ids(form: ReasoningFormat | None, tokenizer: Tokenizer) -> ThoughtIds | None:
    bounds = form.bounds if form is not None else None
    if bounds is None:
        return None
    end = tokenizer.marker_ids(bounds.end)
    start = tokenizer.marker_ids(bounds.start)
    if not end or not (start or bounds.always):
        return None
    before = bounds.before_end
    before_ids = tokenizer.encode(before, add_special_tokens=False) if before else ()
    return ThoughtIds(start=start, end=end, before_end=tuple(before_ids), always=bounds.always)
