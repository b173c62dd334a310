"""Finds rules of EBNF and Lark grammars that no output can finish: each way through them leads back
into them. Neither library minds: it lets a model write until its budget is spent.

A rule can end if one of its alternatives consists of parts that can; what follows from the text is
found in one pass over an and-or graph (Dowling and Gallier's algorithm for Horn formulas).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from baton.protos.constraints import GrammarKind
from baton.protos.errors import GrammarError

_STRING: Final = r"""\"(?:[^"\\\n]|\\.)*\"i?|'(?:[^'\\\n]|\\.)*'"""
_TOKENS: Final = {
    GrammarKind.EBNF: re.compile(
        rf"""(?P<skip>\#[^\n]*|\s+)
        |(?P<rule>[A-Za-z_][\w.-]*)\s*::=
        |(?P<atom>{_STRING}|\[(?:[^\]\\]|\\.)*\])
        |(?P<name>[A-Za-z_][\w.-]*)
        |(?P<may>[*?]|\{{\s*0\s*[,}}][^}}]*\}}?)
        |(?P<must>\+|\{{\s*\d+\s*(?:,\s*\d*\s*)?\}})
        |(?P<mark>[()|])""",
        re.VERBOSE,
    ),
    GrammarKind.LARK: re.compile(
        rf"""(?P<skip>(?://|\#|%(?:ignore|import|llguidance)\b)[^\n]*|\s+|->\s*\w+)
        |[?!]*(?P<rule>[A-Za-z_]\w*)(?:\.-?\d+)?(?:\[[^\]\n]*\])?\s*:
        |(?P<value>%(?:json|regex)\s*)(?=\{{)
        |(?P<atom>{_STRING}|/(?:[^/\\\n]|\\.)+/[imslux]*|<[^>\n]*>|~(?!\s*\d))
        |(?P<name>[A-Za-z_]\w*)
        |(?P<may>[*?]|~\s*0(?!\d)(?:\s*\.\.\s*\d+)?|\{{\s*0\s*[,}}][^}}]*\}}?)
        |(?P<must>\+|~\s*\d+(?:\s*\.\.\s*\d+)?|\{{\s*\d+\s*(?:,\s*\d*\s*)?\}}|\.\.)
        |(?P<mark>[()|[\]])""",
        re.VERBOSE,
    ),
}
_STARTS: Final = {GrammarKind.EBNF: "root", GrammarKind.LARK: "start"}


class _UnreadError(Exception):
    """Something that this does not know: the grammar may be a good one."""


@dataclass(slots=True)
class _Graph:
    """Nodes that can end once `need` of their children can: one of a choice, all of a sequence."""

    need: list[int] = field(default_factory=list)
    parents: list[list[int]] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)

    def node(self, need: int, children: list[int]) -> int:
        self.need.append(need)
        self.parents.append([])
        for child in children:
            self.parents[child].append(len(self.need) - 1)
        return len(self.need) - 1

    def named(self, name: str) -> int:
        if name not in self.names:
            self.names[name] = self.node(1, [])
        return self.names[name]

    def ending(self) -> set[int]:
        """All nodes that can end."""
        found = {node for node, need in enumerate(self.need) if need == 0}
        pending, left = list(found), list(self.need)
        while pending:
            for parent in self.parents[pending.pop()]:
                left[parent] -= 1
                if left[parent] == 0 and parent not in found:
                    found.add(parent)
                    pending.append(parent)
        return found


def check_ends(kind: GrammarKind, source: str) -> None:
    """Raises GrammarError naming a rule that can be begun but never finished.

    Says nothing of grammars with parts that it does not read.
    """
    try:
        graph, uses = _read(kind, source)
    except _UnreadError:
        return
    ending = graph.ending()
    begun = _reachable(_STARTS[kind], uses)
    endless = [name for name in uses if name in begun and graph.names[name] not in ending]
    if endless:
        raise GrammarError(
            f"the rule {_to_blame(endless, uses)[:60]!r} can never end: each of its alternatives "
            "leads back to it; give it one that does not",
            reason="unmatchable",
        )


def _to_blame(endless: list[str], uses: dict[str, list[str]]) -> str:
    """One that leads back to itself, and not just to others that do: each endless rule uses one, so
    a way along them ends where it must come back.
    """
    every, way, name = set(endless), set[str](), endless[0]
    while True:
        way.add(name)
        used = [other for other in uses[name] if other in every]
        onward = next((other for other in used if other not in way), None)
        if onward is None:
            return used[0]
        name = onward


def _reachable(start: str, uses: dict[str, list[str]]) -> set[str]:
    found, pending = {start}, [start]
    while pending:
        new = set(uses.get(pending.pop(), ())) - found
        found |= new
        pending += new
    return found


def _read(kind: GrammarKind, source: str) -> tuple[_Graph, dict[str, list[str]]]:
    """The grammar's graph, and which names each rule uses."""
    graph = _Graph()
    uses: dict[str, list[str]] = {}
    rule = ""
    # Of each open bracket: the alternatives before this one, and this one's parts.
    open_groups: list[tuple[list[int], list[int]]] = []
    for name, text in _tokens(kind, source):
        if name == "rule":
            _close_rule(graph, rule, open_groups)
            rule, open_groups = text, [([], [])]
            uses.setdefault(rule, [])
        elif not rule:
            raise _UnreadError
        elif name == "name":
            uses[rule].append(text)
            open_groups[-1][1].append(graph.named(text))
        elif name == "atom":
            open_groups[-1][1].append(graph.node(0, []))
        elif name == "may" and open_groups[-1][1]:
            open_groups[-1][1][-1] = graph.node(0, [])
        elif name == "mark":
            _mark(graph, open_groups, text)
    _close_rule(graph, rule, open_groups)
    for name, node in graph.names.items():
        if name not in uses:
            # Something built in, or the library's to refuse.
            graph.need[node] = 0
    return graph, uses


def _mark(graph: _Graph, open_groups: list[tuple[list[int], list[int]]], mark: str) -> None:
    if mark in "([":
        open_groups.append(([], []))
        return
    alternatives, parts = open_groups[-1]
    alternatives.append(graph.node(len(parts), parts))
    parts.clear()
    if mark in ")]":
        open_groups.pop()
        if not open_groups:
            raise _UnreadError
        # In square brackets it is optional.
        need = 1 if mark == ")" else 0
        open_groups[-1][1].append(graph.node(need, alternatives))


def _close_rule(graph: _Graph, rule: str, open_groups: list[tuple[list[int], list[int]]]) -> None:
    if not rule:
        return
    if len(open_groups) != 1:
        raise _UnreadError
    _mark(graph, open_groups, "|")
    for alternative in open_groups[0][0]:
        graph.parents[alternative].append(graph.named(rule))


def _tokens(kind: GrammarKind, source: str) -> Iterator[tuple[str, str]]:
    at = 0
    pattern = _TOKENS[kind]
    while at < len(source):
        match = pattern.match(source, at)
        if match is None or match.end() == at:
            raise _UnreadError
        group, at = match.lastgroup or "", match.end()
        if group == "value":
            try:
                _, at = json.JSONDecoder().raw_decode(source, at)
            except ValueError:
                raise _UnreadError from None
            yield "atom", ""
        elif group != "skip":
            yield group, match[group]
