"""The `baton` command. Subcommands are imported when they run, so that help appears at once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from baton import __version__
from baton.protos.errors import BatonError

# Name, module below `baton.cluster.commands`, and what the list of commands says about it.
COMMANDS = {
    "serve": ("serve", "Start a cluster on this machine or on a Ray cluster, and serve a model."),
    "chat": ("chat", "Talk to a model in the terminal."),
    "bench": ("bench", "Measure latency and throughput of a server under load."),
    "status": ("status", "Show workers, queues and KV use, live."),
    "top": ("top", "Show load, latencies, hit rates and plans of a gateway, live."),
    "profile": ("profile", "Record a live worker's steps with torch's profiler."),
    "doctor": ("doctor", "Check this machine, and say what to fix."),
    "explain": ("explain", "Show why a request went where it went, and how it fared."),
    "replay": ("replay", "Decide the decisions of a log again, or by another policy."),
    "simulate": ("simulate", "Compare routing policies on a trace, without workers."),
    "plan": ("plan", "Find the cheapest pools that serve a trace within its SLOs."),
    "scaling": ("scaling", "Show how large the pools are, and why."),
    "config": ("config", "Show or check a configuration, or apply it to a running cluster."),
    "drain": ("drain", "Take a Ray node out of service: what a Kubernetes pod does last."),
    "schema": ("schema", "Say whether a JSON schema can be honoured, and by which backend."),
    "tools": ("tools", "Try a parser of tool calls on recorded answers."),
    "reasoning": ("reasoning", "Try a parser of thoughts on recorded answers."),
    "version": ("version", "Print versions of Baton and of what it runs on."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and summaries without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"baton.cluster.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="baton %(version)s")
def baton() -> None:
    """Baton serves large language models with prefill and decode on separate workers.

    Start with `baton serve`; every command has its own --help.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 when all went well, 1 after a refusal, 2 for wrong
    usage.
    """
    try:
        sys.exit(baton.main(args=arguments, prog_name="baton", standalone_mode=True))
    except BatonError as error:
        click.echo(f"baton: {error.message}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
