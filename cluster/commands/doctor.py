"""`baton doctor`: what on this machine would keep Baton from working, and what to do about it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from baton.protos.errors import BatonError

if TYPE_CHECKING:
    from baton.cluster.config import BatonConfig
    from baton.cluster.doctor.finding import Finding


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(file: Path | None, as_json: bool) -> None:
    """Check this machine for what FILE (or the default configuration) needs to be served here.

    Looks at package versions, ports, shared memory, file descriptors, GPUs and NIXL. Each line
    begins with ok, warning or problem, and says what to do. Exits with 1 if there is a problem.
    """
    found: list[Finding] = []
    for finding in examine(file):
        found.append(finding)
        if not as_json:
            click.echo(finding.line)
    count = Counter(finding.state for finding in found)
    if as_json:
        entries = [dataclasses.asdict(finding) for finding in found]
        click.echo(json.dumps({"ok": not count["problem"], "findings": entries}))
    else:
        counts = [_count(count["problem"], "problem"), _count(count["warning"], "warning")]
        click.echo(f"{', '.join(counts)}, {count['ok']} ok.")
    sys.exit(1 if count["problem"] else 0)


def examine(file: Path | None) -> Iterator[Finding]:
    """All checks, each as soon as it is done; the slow ones last."""
    from baton.cluster.doctor.finding import ok, problem, warning
    from baton.cluster.doctor.host import check_host
    from baton.cluster.doctor.versions import check_versions

    yield from check_versions()
    config = None
    try:
        config = _load(file)
        what = str(file) if file else "The default configuration"
        yield ok("configuration", f"{what} is right, for the model {config.model_name}.")
    except BatonError as error:
        fix = "change that; docs/configuration.md describes every key."
        yield problem("configuration", _sentence(error.message), fix)
    if config is not None:
        yield from check_host(config)
    if importlib.util.find_spec("torch") is None:
        fix = "install torch for workers; a machine with gateways alone needs none."
        yield warning("GPU and NIXL", "Not checked, because torch is not installed.", fix)
        return
    yield from _devices(config)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _load(file: Path | None) -> BatonConfig:
    from baton.cluster.config import load_config

    return load_config(file, {})


def _devices(config: BatonConfig | None) -> Iterator[Finding]:
    from baton.cluster.doctor.child import run_check

    engine = config.decode.engine if config else None
    device = engine.device if engine else "auto"
    utilization = engine.gpu_memory_utilization if engine else 0.9
    fix = "see whether `nvidia-smi` and `python -c 'import torch'` work."
    module = "baton.cluster.doctor.gpu_check"
    gpus = list(run_check("GPU", module, [device, str(utilization)], fix))
    yield from gpus
    on_gpu = device != "cpu" and any(f.check == "GPU driver" for f in gpus)
    fix = "see whether `python -c 'import nixl'` works, and what UCX_TLS and UCX_NET_DEVICES say."
    where = (device if ":" in device else "cuda:0") if on_gpu else "cpu"
    yield from run_check("NIXL", "baton.cluster.doctor.nixl_check", [where], fix)
