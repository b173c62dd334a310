"""Installed packages against the versions that Baton's own package asks for."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Sequence

from packaging.requirements import Requirement

from baton.cluster.doctor.finding import Finding, ok, problem, warning

DISTRIBUTION = "baton-serve"
# What a machine lacks without the packages of an extra.
EXTRAS = {
    "": "nothing runs",
    "worker": "no prefill or decode worker runs here",
    "cluster": "`baton serve` cannot start or join a cluster here",
}


def check_versions() -> list[Finding]:
    """Reads the installed package's requirements and what is there."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        fix = f"run `pip install {DISTRIBUTION}[worker,cluster]`."
        return [warning("versions", "Baton runs from a folder, so nothing says what fits.", fix)]
    return judge(lines, installed_version)


def installed_version(name: str) -> str | None:
    """None: not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def judge(lines: Sequence[str], installed: Callable[[str], str | None]) -> list[Finding]:
    """Findings for requirements as a package's metadata has them; one if all fit.

    Packages of other extras (tests, plots, LMCache) may be absent; where they are there, their
    version must fit too.
    """
    found: list[Finding] = []
    count = 0
    for requirement, extra in _requirements(lines):
        version = installed(requirement.name)
        if version is None:
            if extra in EXTRAS:
                found.append(_missing(requirement, extra))
        elif requirement.specifier.contains(version, prereleases=True):
            count += 1
        else:
            found.append(
                problem(
                    "versions",
                    f"{requirement.name} is {version}, but Baton needs {requirement.specifier}.",
                    _install(requirement),
                )
            )
    python = platform.python_version()
    return found or [ok("versions", f"Python {python}, and {count} packages that all fit.")]


def _requirements(lines: Sequence[str]) -> Iterator[tuple[Requirement, str]]:
    """Those for this platform, each with its extra; tools of tests concern nobody else."""
    for requirement in map(Requirement, lines):
        for extra in (*EXTRAS, "lmcache", "sim"):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                yield requirement, extra
                break


def _missing(requirement: Requirement, extra: str) -> Finding:
    say = problem if not extra else warning
    found = f"{requirement.name} is not installed: without it {EXTRAS[extra]}."
    return say("versions", found, _install(requirement))


def _install(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"run `pip install '{requirement.name}{extras}{requirement.specifier}'`."
