"""`baton config`: what a file would mean, without starting anything."""

from __future__ import annotations

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Any

import click

SECRET = "(hidden)"


@click.group()
def command() -> None:
    """Show or check a configuration. docs/configuration.md describes every key."""


@command.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
def show(file: Path | None) -> None:
    """Print the whole configuration that FILE (or no file) stands for, as YAML, defaults included.

    API keys and the workers' secret are hidden.
    """
    import yaml

    from baton.cluster.config import load_config

    values = as_document(load_config(file, {}))
    click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), nl=False)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Check FILE: exit 0 when it is right; otherwise say which line and key is wrong, and
    exit 1.
    """
    from baton.cluster.config import load_config

    config = load_config(file, {})
    click.echo(
        f"{file} is right: model {config.model_name}, {config.prefill.min_replicas} prefill and "
        f"{config.decode.min_replicas} decode workers, {config.gateway_replicas} gateway(s)."
    )


def as_document(config: Any) -> dict[str, Any]:
    """A BatonConfig as the YAML values that lead to it again, secrets hidden."""
    from baton.cluster.config import GATEWAY_FIXED, WORKER_FIXED

    values: dict[str, Any] = _plain(config)
    for pool in ("prefill", "decode"):
        worker = values[pool].pop("worker")
        engine = {k: v for k, v in worker["engine"].items() if k not in ("model_dir", "role")}
        values[pool]["engine"] = engine
        values[pool]["worker"] = {k: v for k, v in worker.items() if k not in WORKER_FIXED}
    gateway = values["gateway"]
    values["gateway"] = {k: v for k, v in gateway.items() if k not in GATEWAY_FIXED}
    values["secret"] = SECRET if values["secret"] else ""
    values["gateway"]["api_keys"] = [SECRET] * len(gateway["api_keys"])
    for tenant in values["gateway"]["tenants"]:
        tenant["keys"] = [SECRET] * len(tenant["keys"])
    return values


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
