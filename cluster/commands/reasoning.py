"""`baton reasoning`: try a parser of thoughts on answers, one JSON object a line."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import click

from baton.cluster.commands.tools import CASES, CHUNK, PLUGIN, read_cases, write


@click.group()
def command() -> None:
    """Try a parser of thoughts on recorded answers. docs/tools.md lists the parsers."""


@command.command()
@click.option("--parser", "name", required=True, help="Format of the thoughts.")
@CHUNK
@PLUGIN
@CASES
def parse(name: str, chunk: int, plugins: tuple[Path, ...], cases: IO[str]) -> None:
    """Read CASES (or stdin), a JSON object a line, and write the thought and the answer of each.

    In: id, text, and if there are any, chat_template_kwargs, prompt (how the rendered prompt ends)
    and special_tokens (<bos> and <eos>), which are left out as in serving.
    Out: id, reasoning, content.
    """
    from baton.gateway.parsers import formats
    from baton.gateway.parsers.plugins import load_registry
    from baton.gateway.parsers.wishes import as_wished

    form = load_registry(plugins).reasoning(name)
    for case in read_cases(cases):
        thinking = formats.thinking_of(case.kwargs)
        parser = formats.reasoning_parser(form, thinking, case.prompt)
        parser = as_wished(parser, case.kwargs)
        parsed = formats.parse(parser, case.pieces(chunk, form.machine.markers))
        reasoning, content = parsed.reasoning or None, parsed.content or None
        write({"id": case.id, "reasoning": reasoning, "content": content})
