"""The subcommands of `baton`, one module each; `baton.cluster.cli` imports them when they run."""
