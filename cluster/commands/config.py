"""`baton config`: what a file would mean, and pool sizes changed while they run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from pathlib import Path
from typing import Any

import click

from baton.cluster.client import Endpoint, get_json, post_json
from baton.cluster.options import endpoint_options
from baton.protos.errors import ConfigError

KeyPath = tuple[str, ...]

SECRET = "(hidden)"


@click.group()
def command() -> None:
    """Show, check or apply a configuration. docs/configuration.md describes every key."""


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


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@endpoint_options
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.option(
    "--scaling-only",
    is_flag=True,
    help="Apply what can be applied, although other keys of FILE differ from what runs.",
)
def apply(file: Path, endpoint: Endpoint, dry_run: bool, scaling_only: bool) -> None:
    """Change the pool sizes of a running cluster to what FILE says, without a restart.

    Live are `min_replicas`, `max_replicas` and everything below `scaling`, of both pools. FILE is
    checked as a whole; when another key of it differs from what runs, nothing is applied, and the
    keys that need a restart are listed. Where keys are configured, the one of an admin tenant is
    needed.
    """
    from baton.cluster.config import load_config
    from baton.cluster.schema import load_document

    wanted = as_document(load_config(file, {}))
    running = get_json(endpoint, "/baton/config")
    given = paths(load_document(file).values)
    live, fixed = split(changes(running, wanted), given)
    if fixed:
        click.echo("These keys differ from what runs, and need a restart:", err=True)
        for line in fixed:
            click.echo(f"  {line}", err=True)
        if not scaling_only:
            raise ConfigError("nothing was applied; --scaling-only applies the rest of the file")
    if not live:
        click.echo("Nothing to change: the cluster runs with these pool sizes already.")
        return
    if not dry_run:
        post_json(endpoint, "/baton/scaling/apply", live_values(wanted, live))
    click.echo("Would change:" if dry_run else "Changed:")
    for line in live.values():
        click.echo(f"  {line}")


LIVE = ("min_replicas", "max_replicas", "scaling")


def changes(running: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[KeyPath, str]:
    """Every value of two configurations that differs, by its path."""
    before, after = dict(leaves(running)), dict(leaves(wanted))
    # A pool without max_replicas has as many as min_replicas.
    for values in (before, after):
        for pool in ("prefill", "decode"):
            if values.get((pool, "max_replicas")) is None:
                values[pool, "max_replicas"] = values.get((pool, "min_replicas"))
    return {
        path: f"{'.'.join(path)}: {before.get(path)} -> {after.get(path)}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    }


def split(
    changed: Mapping[KeyPath, str], given: AbstractSet[KeyPath]
) -> tuple[dict[KeyPath, str], list[str]]:
    """What can be changed live, and what of the rest the file really says (options of `baton
    serve` may have said the others).
    """
    live = {p: t for p, t in changed.items() if p[0] in ("prefill", "decode") and p[1] in LIVE}
    fixed = [
        text
        for path, text in changed.items()
        if path not in live and (path in given or (len(path) > 1 and path[1:] in given))
    ]
    return live, fixed


def live_values(wanted: Mapping[str, Any], live: Iterable[KeyPath]) -> dict[str, Any]:
    """The sections to send for the pools that change."""
    pools: dict[str, Any] = {}
    for pool in {path[0] for path in live}:
        values = wanted[pool]
        pools[pool] = {key: values[key] for key in LIVE}
        if values["max_replicas"] is None:
            pools[pool]["max_replicas"] = values["min_replicas"]
    return pools


def leaves(values: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value that is not a mapping, with its path."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def paths(values: Mapping[str, Any]) -> set[KeyPath]:
    """The paths that a file mentions."""
    return {path for path, _ in leaves(values)}


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
