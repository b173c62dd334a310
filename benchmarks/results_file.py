"""One way to write a benchmark's results: rows, settings, and what they were measured on.

```python
write_results("benchmarks/results/kv_cpu.json", rows, {"repeats": 15})
```
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).resolve().parent.parent
_PACKAGES: Final = (
    "torch",
    "triton",
    "nixl-cu13",
    "ray",
    "grpcio",
    "transformers",
    "xgrammar",
    "llguidance",
    "vllm",
    "sglang",
)


def write_results(
    path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> None:
    """Writes `{machine, commit, versions, date, settings, rows}` as JSON, one row a line."""
    head = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "settings": dict(settings),
    }
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    body = ",\n".join(f"    {json.dumps(dict(row))}" for row in rows)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("{\n" + "\n".join(lines) + f'\n  "rows": [\n{body}\n  ]\n' + "}\n")


def merge_results(
    path: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    *,
    key: Sequence[str],
) -> None:
    """As `write_results`, but the file keeps its rows of other keys, and its other settings."""
    there = Path(path)
    before = json.loads(there.read_text()) if there.exists() else {"rows": [], "settings": {}}
    named = {tuple(row[name] for name in key): row for row in [*before["rows"], *rows]}
    write_results(path, list(named.values()), {**before["settings"], **settings})


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """`{p20, p50, p80}` of the samples, the nearest of them each, rounded to 4 digits."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return {
        f"p{percent}": float(f"{ordered[round(last * percent / 100)]:.4g}")
        for percent in (20, 50, 80)
    }


def machine() -> dict[str, Any]:
    """CPU model, cores, memory (GiB), kernel, GPUs, and how busy the machine was (load average)."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "gpus": _gpus(),
        "load_average_1m": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Python's version, and those of the packages that matter and are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the checkout, with `+changes` if tracked files differ from it."""
    head = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "status", "--porcelain", "--untracked-files=no")
    return f"{head or 'unknown'}{'+changes' if changed else ''}"


def _output(*command: str) -> str:
    """What the command prints; empty if it is missing or fails."""
    try:
        done = subprocess.run(
            command, cwd=_ROOT, capture_output=True, text=True, timeout=30, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _gpus() -> list[str]:
    query = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return query.splitlines()
