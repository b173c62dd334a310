"""Schemas inside a Lark grammar: `%json {...}`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from baton.engine.grammar.schema.document import Schema


def change_embedded(lark: str, change: Callable[[Schema], Schema]) -> str:
    """The grammar with each of its schemas changed; what is no JSON stays for llguidance to say."""
    parts: list[str] = []
    start = 0
    for match in re.finditer(r"%json\s*(?=\{)", lark):
        if match.start() < start:
            continue
        try:
            schema, end = json.JSONDecoder().raw_decode(lark, match.end())
        except ValueError:
            continue
        parts += [lark[start : match.end()], json.dumps(change(schema))]
        start = end
    return "".join([*parts, lark[start:]])
