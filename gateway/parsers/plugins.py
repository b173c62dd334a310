"""Formats that users bring: installed packages by entry point, and single files."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from baton.gateway.parsers.formats import ReasoningFormat, ToolFormat
from baton.gateway.parsers.registry import ParserRegistry
from baton.protos.errors import ConfigError

ENTRY_POINT_GROUPS = ("baton.tool_parsers", "baton.reasoning_parsers")


def load_registry(plugin_files: Iterable[Path] = ()) -> ParserRegistry:
    """Baton's formats, those of installed packages, and those of the files, the last winning.

    Raises ConfigError for a plugin that cannot be loaded or brings no format.
    """
    registry = ParserRegistry().with_formats(_installed())
    for file in plugin_files:
        registry = registry.with_formats(formats_of_file(file))
    return registry


def formats_of_file(file: Path) -> list[ToolFormat | ReasoningFormat]:
    """Runs a Python file and returns the formats that its module-level names hold."""
    spec = importlib.util.spec_from_file_location(f"baton_plugin_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(
            f"{file} is no Python file; its name must end in .py",
            param="tool_parser_plugins",
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"{file} cannot be loaded: {type(error).__name__}: {error}",
            param="tool_parser_plugins",
        ) from error
    found = [v for v in vars(module).values() if isinstance(v, ToolFormat | ReasoningFormat)]
    if not found:
        raise ConfigError(
            f"{file} has no ToolFormat and no ReasoningFormat at module level",
            param="tool_parser_plugins",
        )
    return found


def _installed() -> list[ToolFormat | ReasoningFormat]:
    found: list[ToolFormat | ReasoningFormat] = []
    for group in ENTRY_POINT_GROUPS:
        for point in importlib.metadata.entry_points(group=group):
            try:
                form = point.load()
            except Exception as error:
                raise ConfigError(
                    f"entry point {point.name!r} of {group} ({point.value}) cannot be loaded: "
                    f"{type(error).__name__}: {error}"
                ) from error
            if not isinstance(form, ToolFormat | ReasoningFormat):
                raise ConfigError(
                    f"entry point {point.name!r} of {group} is a {type(form).__name__}; "
                    "it must be a ToolFormat or a ReasoningFormat"
                )
            found.append(form)
    return found
