"""From a YAML document to frozen dataclasses, with errors that say which line, which key and what
would work.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import pydantic
import yaml

from baton.protos.errors import BatonError, ConfigError

MAX_CONFIG_BYTES = 1 << 20
MAX_CONFIG_VALUES = 10_000
KeyPath = tuple[str | int, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Plain values and where each of them was written, such as `baton.yaml line 3` or `--port`."""

    values: dict[str, Any]
    origins: Mapping[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> str:
        """Where `path`, or else the nearest thing around it, was written; empty when nowhere."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        return ""

    def override(self, path: KeyPath, value: Any, origin: str) -> Document:
        """A document in which `value` from `origin` (an option's name) stands at `path`."""
        values = _put(self.values, path, value)
        return Document(values=values, origins={**self.origins, path: origin})

    def error(self, path: KeyPath, problem: str) -> ConfigError:
        """A ConfigError about `path`, with the place where it was written in front."""
        name = dotted(path)
        origin = self.origin(path)
        return ConfigError(f"{origin}: {problem}" if origin else problem, param=name)


def dotted(path: KeyPath) -> str:
    """`("prefill", "engine", "block_size")` as `prefill.engine.block_size`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _put(values: Mapping[str, Any], path: KeyPath, value: Any) -> dict[str, Any]:
    key, rest = str(path[0]), path[1:]
    changed = dict(values)
    inner = changed.get(key)
    changed[key] = _put(inner if isinstance(inner, Mapping) else {}, rest, value) if rest else value
    return changed


def load_document(path: Path) -> Document:
    """Reads a YAML file. Raises ConfigError when it is missing, too big, or not a mapping of plain
    values.
    """
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise ConfigError(
                f"{path} has {size} bytes; a configuration has at most {MAX_CONFIG_BYTES}"
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason}") from error
    return parse_document(text, str(path))


def parse_document(text: str, source: str) -> Document:
    """Parses YAML text; `source` names it in errors. An empty text is an empty document."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{source} line {line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    if root is None:
        return Document(values={}, origins={(): source})
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{source} line 1: a configuration is a mapping of `key: value` lines")
    origins: dict[KeyPath, str] = {(): source}
    values = _Reader(source, origins).read(root, ())
    return Document(values=values, origins=origins)


class _Reader:
    """Turns YAML nodes into values and notes the line of each; refuses repeated keys and cycles."""

    def __init__(self, source: str, origins: dict[KeyPath, str]) -> None:
        self._source = source
        self._origins = origins
        self._scalars = yaml.SafeLoader("")
        self._num_values = 0

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        if path:
            self._origins[path] = f"{self._source} line {node.start_mark.line + 1}"
        # Aliases can repeat or contain themselves: what is read is bounded, not what is written.
        self._num_values += 1
        if len(path) > 16 or self._num_values > MAX_CONFIG_VALUES:
            raise ConfigError(
                f"{self._source}: over {MAX_CONFIG_VALUES} values or 16 levels at {dotted(path)}"
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(child, (*path, i)) for i, child in enumerate(node.value)]
        try:
            return self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            line = node.start_mark.line + 1
            raise ConfigError(f"{self._source} line {line}: {dotted(path)}: {error}") from error

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in values:
                raise ConfigError(
                    f"{self._source} line {line}: {dotted((*path, key))} is given twice",
                    param=dotted((*path, key)),
                )
            values[key] = self.read(value_node, (*path, key))
            self._origins[(*path, key)] = f"{self._source} line {line}"
        return values


def unknown_key(document: Document, path: KeyPath, known: list[str]) -> ConfigError:
    """The error for a key that does not exist, with the closest one that does."""
    key = str(path[-1])
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(sorted(known))}"
    return document.error(path, f"{dotted(path)} is not a known key; {hint}")


def read_fields(
    cls: type[Any],
    values: Any,
    document: Document,
    path: KeyPath,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Checks the keys and types of one section; returns constructor arguments for the keys that are
    there.

    `fixed` names fields that a file may not set, each with the reason. Raises ConfigError.
    """
    fixed = fixed or {}
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise document.error(path, f"{dotted(path)} must be a mapping of `key: value` lines")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in fixed]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key in fixed:
            raise document.error((*path, key), f"{dotted((*path, key))} {fixed[key]}")
        if key not in known:
            raise unknown_key(document, (*path, key), known)
        arguments[key] = _read_value(hints[key], value, document, (*path, key))
    return arguments


def build(cls: type[T], arguments: Mapping[str, Any], document: Document, path: KeyPath) -> T:
    """Constructs `cls`; what its own checks refuse becomes a ConfigError that says where it was
    written.
    """
    try:
        return cls(**arguments)
    except BatonError as error:
        inner = error.param.split(".") if error.param else []
        where = (*path, *(int(part) if part.isdecimal() else part for part in inner))
        raise document.error(where, f"{_prefix(path)}{error.message}") from error
    except (ValueError, TypeError) as error:
        raise document.error(path, f"{_prefix(path)}{error}") from error


def _prefix(path: KeyPath) -> str:
    return f"{dotted(path)}: " if path else ""


def _read_value(hint: Any, value: Any, document: Document, path: KeyPath) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        inner = [a for a in get_args(hint) if a is not types.NoneType]
        if value is not None and len(inner) == 1 and dataclasses.is_dataclass(inner[0]):
            hint = inner[0]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, read_fields(hint, value, document, path), document, path)
    item = get_args(hint)[0] if get_origin(hint) is tuple else None
    if isinstance(item, type) and dataclasses.is_dataclass(item) and isinstance(value, list):
        return tuple(_read_value(item, one, document, (*path, i)) for i, one in enumerate(value))
    return _read_plain(hint, value, document, path)


def _read_plain(hint: Any, value: Any, document: Document, path: KeyPath) -> Any:
    """JSON's strict rules: no "8" for 8, no true for 1; a list for a tuple and a name for an enum
    are fine.
    """
    try:
        encoded = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise document.error(
            path, f"{dotted(path)} is {value!r}, which is not a plain number, text, list or mapping"
        ) from error
    try:
        return pydantic.TypeAdapter(hint).validate_json(encoded, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        shown = encoded if len(encoded) <= 80 else encoded[:77] + "..."
        problem = first["msg"][:1].lower() + first["msg"][1:]
        raise document.error(path, f"{dotted(path)} is {shown}: {problem}") from error
