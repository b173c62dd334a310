"""The recorded cases, and how an answer is compared with what was recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.gateway.parsers import formats
from baton.gateway.parsers.events import Parsed
from baton.gateway.parsers.registry import ParserRegistry
from baton.gateway.parsers.wishes import as_wished

HERE = Path(__file__).parent
KINDS = ("tool", "reasoning", "combined")
REGISTRY = ParserRegistry()


@dataclass(frozen=True, slots=True)
class Recorded:
    kind: str
    row: dict[str, Any]
    tools: list[dict[str, Any]]

    @property
    def ids(self) -> list[str]:
        return [f"{self.kind}-{name}" for name in self.row["ids"]]

    @property
    def fragment(self) -> bool:
        """One delta of a longer stream, recorded alone: equal ones have different results."""
        return bool(self.row.get("fragment"))

    @property
    def text(self) -> str:
        text: str = self.row["text"]
        return text

    def pieces(self, size: int) -> list[str]:
        return [self.text[i : i + size] for i in range(0, len(self.text), size)]

    def recorded_pieces(self) -> Iterator[list[str]]:
        for lengths in self.row.get("chunks", ()):
            pieces, start = [], 0
            for length in lengths:
                pieces.append(self.text[start : start + length])
                start += length
            yield pieces

    def parser(self) -> formats.StreamParser:
        kwargs = {"force_nonempty_content": self.row.get("nonempty", False)}
        return as_wished(self._parser(), kwargs, calls=not self.row.get("no_calls"))

    def _parser(self) -> formats.StreamParser:
        name, row = self.row["parser"], self.row
        thinking, prompt = row.get("thinking"), row.get("prompt", "")
        if isinstance(name, str) and self.kind == "tool":
            return formats.tool_parser(REGISTRY.tool(name), self.tools)
        if self.kind == "reasoning":
            return formats.reasoning_parser(REGISTRY.reasoning(name), thinking, prompt)
        tool, thoughts = name
        if thoughts is None:
            return formats.tool_parser(REGISTRY.tool(tool), self.tools)
        form = REGISTRY.reasoning(thoughts)
        if tool is None:
            return formats.reasoning_parser(form, thinking, prompt)
        return formats.answer_parser(REGISTRY.tool(tool), form, self.tools, thinking, prompt)

    def parsed(self, pieces: list[str]) -> Parsed:
        return formats.parse(self.parser(), pieces)

    def agrees(self, found: Parsed) -> bool:
        """Whether this is what was recorded: names and arguments as JSON, text stripped."""
        expected = self.row["expected"]
        same_calls = [(c.name, _value(c.arguments)) for c in found.tool_calls] == [
            (name, _value(arguments)) for name, arguments in expected.get("calls", ())
        ]
        same_content = found.content.strip() == expected.get("content", "")
        if self.kind == "tool" or expected.get("reasoning", "") is None:
            return same_calls and same_content
        if self.row.get("no_reasoning"):
            return same_calls and same_content
        same_reasoning = found.reasoning.strip() == expected.get("reasoning", "")
        if self.kind == "reasoning":
            return same_content and same_reasoning
        return same_calls and same_content and same_reasoning


def cases(kind: str) -> list[Recorded]:
    tools = _lines(HERE / "cases" / "tools.jsonl")
    rows = _lines(HERE / "cases" / f"{kind}.jsonl")
    return [Recorded(kind, row, tools[row["tools"]] if "tools" in row else []) for row in rows]


def differences() -> dict[str, str]:
    """Case id to the name of the reason why Baton's answer is another one."""
    listed = json.loads((HERE / "differences.json").read_text(encoding="utf-8"))
    return {case: name for name, entry in listed.items() for case in entry["ids"]}


def _value(arguments: str) -> Any:
    if not arguments.strip():
        return {}
    try:
        return json.loads(arguments)
    except ValueError:
        return ("no JSON", arguments.strip())


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
