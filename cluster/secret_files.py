"""Secrets that a configuration names by the file they are in, so as to be kept apart from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.cluster.schema import Document, load_document, read_fields
from baton.gateway.tenants import TenantConfig
from baton.protos.errors import ConfigError

MAX_SECRET_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class _TenantsFile:
    tenants: tuple[TenantConfig, ...] = ()


def secret_file(document: Document) -> Document:
    """The document with `secret` read from its `secret_file`, if it names one. Raises
    ConfigError.
    """
    name = document.values.get("secret_file")
    left = {key: value for key, value in document.values.items() if key != "secret_file"}
    bare = Document(values=left, origins=document.origins)
    if name is None:
        return bare
    if not isinstance(name, str):
        raise document.error(("secret_file",), "secret_file must be a path")
    if left.get("secret"):
        raise document.error(("secret_file",), "secret and secret_file exclude each other")
    try:
        secret = Path(name).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"secret_file: cannot read {name}: {error}"
        raise document.error(("secret_file",), problem) from error
    if not 0 < len(secret) <= MAX_SECRET_BYTES:
        problem = f"secret_file: {name} must hold 1 to {MAX_SECRET_BYTES} characters"
        raise document.error(("secret_file",), problem)
    return bare.override(("secret",), secret, document.origin(("secret_file",)))


def tenants_file(document: Document) -> tuple[Any, tuple[TenantConfig, ...]]:
    """The gateway's section without `tenants_file`, and the tenants of that file. Raises
    ConfigError.
    """
    section = document.values.get("gateway")
    if not isinstance(section, Mapping) or section.get("tenants_file") is None:
        return section, ()
    name = section["tenants_file"]
    if not isinstance(name, str):
        raise document.error(("gateway", "tenants_file"), "gateway.tenants_file must be a path")
    try:
        secrets = load_document(Path(name).expanduser())
    except ConfigError as error:
        problem = f"gateway.tenants_file: {error.message}"
        raise document.error(("gateway", "tenants_file"), problem) from error
    fields = read_fields(_TenantsFile, secrets.values, secrets, ())
    left = {key: value for key, value in section.items() if key != "tenants_file"}
    return left, fields.get("tenants", ())
