"""Which adapters a cluster begins with, and from where others may be loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.cluster.schema import Document, KeyPath, dotted
from baton.protos.errors import ConfigError, InvalidRequestError

MAX_NAME_CHARS = 128
# Of a batch, where adapters are configured and nothing else is said.
MAX_LORAS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterModule:
    """An adapter that the cluster starts with: its name for clients and its folder. With a
    `base_model_name` it must be that of the model which is served.
    """

    name: str
    path: str
    base_model_name: str = ""

    def __post_init__(self) -> None:
        try:
            check_adapter_name(self.name)
        except InvalidRequestError as error:
            raise ConfigError(error.message, param="name") from error
        if not self.path:
            raise ConfigError(f"the adapter {self.name!r} has no path: give its folder")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptersConfig:
    """`modules` are there from the start; others are loaded while serving, from folders below one
    of the `roots` only. A load that has not reached every worker within `load_timeout_s` reaches
    none.
    """

    modules: tuple[AdapterModule, ...] = ()
    roots: tuple[str, ...] = ()
    load_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        names = [module.name for module in self.modules]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"the adapter {twice!r} is given twice: rename one", param="modules")
        if not self.load_timeout_s > 0:
            raise ConfigError(
                f"load_timeout_s is {self.load_timeout_s}, but must be more than 0",
                param="load_timeout_s",
            )

    @property
    def base(self) -> str:
        """Names this set of modules: another one replaces what was loaded while serving."""
        text = json.dumps([[module.name, module.path] for module in self.modules])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_adapter_name(name: str) -> None:
    """Raises InvalidRequestError for a name that clients or logs could not carry."""
    if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable() or " " in name:
        raise InvalidRequestError(
            f"the adapter name {name[:MAX_NAME_CHARS]!r} must be 1 to {MAX_NAME_CHARS} printable "
            "characters without spaces",
            param="lora_name",
        )


def check_shadows(name: str, model_names: Sequence[str]) -> None:
    """Raises InvalidRequestError for a name that stands for the base model."""
    if name in model_names:
        raise InvalidRequestError(
            f"the adapter name {name!r} is the base model's: choose another", param="lora_name"
        )


def check_modules(modules: Sequence[AdapterModule], model_names: Sequence[str]) -> None:
    """Raises ConfigError for a module that does not fit the model which is served."""
    for i, module in enumerate(modules):
        try:
            check_shadows(module.name, model_names)
        except InvalidRequestError as error:
            raise ConfigError(error.message, param=f"adapters.modules.{i}.name") from error
        if module.base_model_name and module.base_model_name not in model_names:
            raise ConfigError(
                f"the adapter {module.name!r} is for {module.base_model_name!r}, but "
                f"{model_names[0]!r} is served",
                param=f"adapters.modules.{i}.base_model_name",
            )


def complete_adapters(document: Document) -> Document:
    """With `modules` in their long form and absolute paths (workers may run in other folders), and
    with room for some adapters where any are configured and nothing is said of that.

    A module may also be written as `name=path`, or as JSON text such as `--lora-modules` takes.
    Raises ConfigError.
    """
    section = document.values.get("adapters")
    if not isinstance(section, dict):
        return document
    changed = dict(section)
    if isinstance(section.get("modules"), list):
        path: KeyPath = ("adapters", "modules")
        modules = enumerate(section["modules"])
        changed["modules"] = [_module(item, document, (*path, i)) for i, item in modules]
    if isinstance(section.get("roots"), list):
        changed["roots"] = [_absolute(root) for root in section["roots"]]
    values = {**document.values, "adapters": changed}
    document = Document(values=values, origins=document.origins)
    if not (changed.get("modules") or changed.get("roots")) or _says_max_loras(values):
        return document
    return document.override(("engine", "max_loras"), MAX_LORAS, "adapters")


def _says_max_loras(values: Mapping[str, Any]) -> bool:
    pools = (values.get(name) for name in ("prefill", "decode"))
    sections = [values, *(pool for pool in pools if isinstance(pool, Mapping))]
    engines = (section.get("engine") for section in sections)
    return any(isinstance(engine, Mapping) and "max_loras" in engine for engine in engines)


def _module(item: Any, document: Document, path: KeyPath) -> Any:
    if isinstance(item, str):
        item = _spelled_out(item, document, path)
    if isinstance(item, dict):
        return {key: _absolute(v) if key == "path" else v for key, v in item.items()}
    return item


def _spelled_out(text: str, document: Document, path: KeyPath) -> Any:
    wanted = 'must be name=path, or JSON such as {"name": "sql", "path": "/adapters/sql"}'
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise document.error(path, f"{dotted(path)} is {text!r}: {wanted}") from error
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise document.error(path, f"{dotted(path)} is {text!r}, but {wanted}")
    return {"name": name, "path": folder}


def _absolute(path: Any) -> Any:
    return str(Path(path).expanduser().absolute()) if isinstance(path, str) else path
