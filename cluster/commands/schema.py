"""`baton schema`: whether a JSON schema can be honoured, before anyone asks for it."""

from __future__ import annotations

import json
import sys
from typing import IO

import click

from baton.protos.errors import InvalidRequestError


@click.group()
def command() -> None:
    """Check JSON schemas for structured output. docs/structured_output.md says what is honoured."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object instead of lines.")
@click.argument("file", type=click.File("r", encoding="utf-8"), default="-")
def check(file: IO[str], as_json: bool) -> None:
    """Say which backend honours the schema in FILE (or stdin), and which keywords one cannot.

    Exit 0 when a request with backend `auto` would be served, 1 when it would be refused.
    """
    from baton.engine.grammar.check import check_schema

    try:
        text = file.read()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the schema is not UTF-8: {error}") from error
    found = check_schema(text)
    if as_json:
        values = {
            "auto": found.auto,
            "rewritten": list(found.rewritten),
            "backends": {
                verdict.backend: {
                    "honoured": verdict.honoured,
                    "reason": verdict.reason,
                    "keywords": list(verdict.keywords),
                }
                for verdict in found.verdicts
            },
        }
        click.echo(json.dumps(values))
    else:
        click.echo(f"auto: {found.auto or 'refused'}")
        for verdict in found.verdicts:
            click.echo(f"{verdict.backend}: {'honoured' if verdict.honoured else verdict.reason}")
            if verdict.keywords:
                click.echo(f"{verdict.backend} cannot: {', '.join(verdict.keywords)}")
        if found.rewritten:
            click.echo(f"said by other keywords: {', '.join(found.rewritten)}")
    sys.exit(0 if found.auto else 1)
