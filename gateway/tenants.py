"""Who a request is counted for: tenants, their API keys and their limits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.protos.errors import ConfigError
from baton.router.admission_config import TenantLimits

# Whose requests they are where no keys are configured.
EVERYBODY = "everybody"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantConfig(TenantLimits):
    """One tenant: its API keys beside its share and limits. Raises ConfigError.

    The keys of an `admin` may also change the cluster's settings.
    """

    admin: bool = False
    # Secrets: never shown by repr.
    keys: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one written here.
        TenantLimits.__post_init__(self)
        if not self.keys or not all(self.keys):
            raise ConfigError(
                f"the tenant {self.name!r} needs at least one key, and no empty one", param="keys"
            )


def check_tenants(tenants: Sequence[TenantConfig], api_keys: Sequence[str]) -> None:
    """Raises ConfigError where a name or a key is given twice; never shows a key."""
    names: set[str] = set()
    keys = dict.fromkeys(api_keys, "api_keys")
    for i, tenant in enumerate(tenants):
        if tenant.name in names:
            raise ConfigError(
                f"the tenant {tenant.name!r} is given twice: join the two",
                param=f"tenants.{i}.name",
            )
        names.add(tenant.name)
        for key in tenant.keys:
            owner = keys.setdefault(key, tenant.name)
            if owner != tenant.name:
                raise ConfigError(
                    f"a key of the tenant {tenant.name!r} also belongs to {owner}: every key has "
                    "one owner",
                    param=f"tenants.{i}.keys",
                )


def all_tenants(tenants: Sequence[TenantConfig], api_keys: Sequence[str]) -> list[TenantConfig]:
    """Those that are configured, and one of its own for each plain key, named by its digest."""
    plain = [TenantConfig(name=f"key-{key_digest(key).hex()[:8]}", keys=(key,)) for key in api_keys]
    return [*tenants, *plain]


def key_digest(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()
