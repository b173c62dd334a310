"""One line of what the doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found. `fix` says what to do, and is empty where there is nothing to do.

    problem: Baton does not start or does not work so. warning: it works, with less than it could.
    Both texts are whole sentences.
    """

    check: str
    state: State
    found: str
    fix: str = ""

    @property
    def line(self) -> str:
        """One line that can be read aloud."""
        text = f"{self.state}: {self.check}: {self.found}"
        return f"{text} To fix it: {self.fix}" if self.fix else text


def ok(check: str, found: str) -> Finding:
    """A check that found everything right."""
    return Finding(check=check, state="ok", found=found)


def warning(check: str, found: str, fix: str) -> Finding:
    """A check that found something that could be better."""
    return Finding(check=check, state="warning", found=found, fix=fix)


def problem(check: str, found: str, fix: str) -> Finding:
    """A check that found what keeps Baton from working."""
    return Finding(check=check, state="problem", found=found, fix=fix)
