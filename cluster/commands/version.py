"""`baton version`."""

from __future__ import annotations

import importlib.metadata
import platform

import click

from baton import __version__

PACKAGES = ("ray", "torch", "nixl-cu13", "grpcio", "fastapi", "tokenizers")


@click.command()
def command() -> None:
    """Print versions of Baton, of Python and of the packages that Baton runs on."""
    click.echo(f"baton {__version__}")
    click.echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in PACKAGES:
        try:
            click.echo(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            click.echo(f"{package} is not installed")
