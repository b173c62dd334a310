"""Where LMCache is, or how large a server of Baton's own shall be."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from baton.protos.errors import ConfigError

# Stands for the server of the configuration's `lmcache` section.
AUTO: Final = "auto"
# The one that works.
VERSION: Final = "0.5.6"
_SCHEMES: Final = ("tcp", "ipc", "grpc", "grpc+unix")


@dataclass(frozen=True, slots=True, kw_only=True)
class LMCacheConfig:
    """`address` of a server that is there already, on every machine with workers, with Baton's
    module in it; empty: `baton serve` runs one.

    memory_gib: shared memory of that one; /dev/shm must have as much. storage: what it keeps
    objects in beyond that, each LMCache's own JSON of an "L2 adapter", such as
    {"type": "fs", "base_path": "/mnt/kv"}. Raises ConfigError.
    """

    address: str = ""
    memory_gib: float = 1.0
    storage: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.address:
            check_address("address", self.address)
        if not (math.isfinite(self.memory_gib) and self.memory_gib > 0):
            raise ConfigError(
                f"memory_gib is {self.memory_gib}, but must be more than 0", param="memory_gib"
            )
        for number, text in enumerate(self.storage):
            if _storage_type(text) is None:
                raise ConfigError(
                    f'storage[{number}] is {text!r}, but must be JSON with a "type", such as'
                    ' {"type": "fs", "base_path": "/mnt/kv"}',
                    param="storage",
                )


def check_known(name: str, address: str) -> None:
    """ConfigError for an address that nobody has replaced by that of a server."""
    if address == AUTO:
        raise ConfigError(
            f"{name} is auto, but nothing here runs an LMCache server: give its address",
            param=name,
        )
    check_address(name, address)


def check_address(name: str, address: str) -> None:
    """ConfigError unless it names a server as LMCache does."""
    scheme, _, rest = address.partition("://")
    if scheme not in _SCHEMES or not rest:
        raise ConfigError(
            f"{name} is {address!r}, but must be the address of an LMCache server, such as"
            f" tcp://127.0.0.1:5555 (or {', '.join(_SCHEMES[1:])})",
            param=name,
        )


def _storage_type(text: str) -> str | None:
    try:
        values = json.loads(text)
    except ValueError:
        return None
    found = values.get("type") if isinstance(values, dict) else None
    return found if isinstance(found, str) and found else None


def check_installed(field: str) -> None:
    """ConfigError that names `field` unless the one version of lmcache that works is installed."""
    try:
        found = version("lmcache")
    except PackageNotFoundError:
        found = "not installed"
    if found != VERSION:
        raise ConfigError(
            f"{field} asks for LMCache, but the package lmcache is {found}: install"
            f" baton-serve[lmcache], which is lmcache=={VERSION}",
            param=field,
        )
