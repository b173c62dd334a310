"""`baton tools`: try a parser of tool calls on answers, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import click

from baton.protos.errors import InvalidRequestError

PLUGIN = click.option(
    "--tool-parser-plugin",
    "plugins",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Python file with further formats; may be given several times.",
)
CHUNK = click.option(
    "--chunk",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Feed the text in pieces of so many characters; 0: whole.",
)
# What a row's text may have when it does not say, as decoded with special tokens.
_SPECIAL_TOKENS = ("<bos>", "<eos>")
CASES = click.argument("cases", type=click.File("r", encoding="utf-8"), default="-")


@click.group()
def command() -> None:
    """Try a parser of tool calls on recorded answers. docs/tools.md lists the parsers."""


@command.command()
@click.option("--parser", "name", required=True, help="Format of the calls.")
@click.option("--reasoning-parser", help="Format of thoughts to take out before.")
@CHUNK
@PLUGIN
@CASES
def parse(
    name: str, reasoning_parser: str | None, chunk: int, plugins: tuple[Path, ...], cases: IO[str]
) -> None:
    """Read CASES (or stdin), a JSON object a line, and write what each text holds.

    In: id, text, and if there are any, tools and tool_choice ("none" drops calls) as in a chat
    request, chat_template_kwargs, prompt (how the rendered prompt ends), and special_tokens
    (<bos> and <eos>): as in serving, those that are no markers of the format are left out of the
    text. Parsers read text alone, so token_ids and other keys are not used.
    Out: id, content, tool_calls (name, arguments as JSON text), and reasoning if any.
    """
    from baton.gateway.parsers import formats
    from baton.gateway.parsers.plugins import load_registry
    from baton.gateway.parsers.wishes import as_wished

    registry = load_registry(plugins)
    form = registry.tool(name)
    thoughts = registry.reasoning(reasoning_parser) if reasoning_parser else None
    markers = (*form.machine.markers, *(thoughts.machine.markers if thoughts else ()))
    for case in read_cases(cases):
        parser = formats.tool_parser(form, case.tools)
        if thoughts is not None:
            thinking = formats.thinking_of(case.kwargs)
            parser = formats.answer_parser(form, thoughts, case.tools, thinking, case.prompt)
        parser = as_wished(parser, case.kwargs, calls=case.calls)
        parsed = formats.parse(parser, case.pieces(chunk, markers))
        calls = [{"name": c.name, "arguments": c.arguments} for c in parsed.tool_calls]
        found = {"id": case.id, "content": parsed.content or None, "tool_calls": calls}
        write(found | ({"reasoning": parsed.reasoning} if parsed.reasoning else {}))


class Case:
    """One line of input. Raises InvalidRequestError naming the line and the field."""

    def __init__(self, line: str, number: int) -> None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"line {number}: this is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InvalidRequestError(f"line {number}: this is no JSON object")
        self._number = number
        self.id = row.get("id")
        self.text: str = self._of(row, "text", str, "a string")
        self.tools: list[dict[str, Any]] = self._of(row, "tools", list, "a list of tools")
        if not all(isinstance(tool, dict) for tool in self.tools):
            raise InvalidRequestError(f"line {number}: tools must be a list of tools")
        self.kwargs: dict[str, Any] = self._of(row, "chat_template_kwargs", dict, "an object")
        self.prompt: str = self._of(row, "prompt", str, "a string")
        self.calls = row.get("tool_choice") != "none"
        special = self._of(row, "special_tokens", list, "a list of strings")
        if not all(isinstance(token, str) for token in special):
            raise InvalidRequestError(f"line {number}: special_tokens must be a list of strings")
        self._special = special if "special_tokens" in row else _SPECIAL_TOKENS

    def _of(self, row: dict[str, Any], key: str, kind: type, words: str) -> Any:
        value = row.get(key)
        if value is None and key != "text":
            return kind()
        if not isinstance(value, kind):
            raise InvalidRequestError(f"line {self._number}: {key} must be {words}")
        return value

    def pieces(self, size: int, markers: Sequence[str]) -> list[str]:
        """The text without special tokens that are no markers, cut into pieces of `size`
        characters; whole if that is 0.
        """
        text = self.text
        for token in self._special:
            if token and token not in markers:
                text = text.replace(token, "")
        return [text[i : i + size] for i in range(0, len(text), size)] if size else [text]


def read_cases(lines: IO[str]) -> Iterator[Case]:
    """The cases of a file, blank lines left out."""
    try:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Case(line, number)
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the cases are not UTF-8: {error}") from error


def write(found: dict[str, Any]) -> None:
    """One line of output."""
    click.echo(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
