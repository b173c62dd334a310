"""Checks that may hang or end their process, such as those that load a driver: run in a child.

The child, `python -m baton.cluster.doctor.NAME ARGUMENTS`, prints its findings as JSON in one
line, the last one.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence

from baton.cluster.doctor.finding import Finding, problem

# Importing torch alone takes tens of seconds from a cold network disk.
LIMIT_S = 120.0


def run_check(
    check: str, module: str, arguments: Sequence[str], fix: str, limit_s: float = LIMIT_S
) -> list[Finding]:
    """What `module` found; a problem with `fix` if it hangs, fails or dies."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return [problem(check, f"No answer within {limit_s:g} seconds.", fix)]
    if done.returncode:
        last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-1:]
        said = f" It said: {last[0].rstrip('.')}." if last else ""
        return [problem(check, f"The check {_ended(done.returncode)}.{said}", fix)]
    return [Finding(**entry) for entry in json.loads(done.stdout.splitlines()[-1])]


def _ended(code: int) -> str:
    if code > 0:
        return f"ended with exit status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
