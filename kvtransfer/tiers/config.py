"""What a worker keeps of its KV beyond its pool."""

from __future__ import annotations

import math
from dataclasses import dataclass

from baton.kvtransfer.lmcache.config import AUTO, check_address
from baton.protos.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TierConfig:
    """Sizes are GiB of each worker; 0 turns a tier off. Raises ConfigError.

    cpu_gib: host memory for blocks that the pool evicts, page-locked where there is a GPU.
    disk_path, disk_gib: a folder for them, and how much of it each worker fills. A worker that
        comes later takes over what an earlier one of the same model and layout left.
    lmcache: address of an LMCache server on this machine, for what all workers share; auto: the one
        of the cluster's `lmcache` section.
    """

    cpu_gib: float = 0.0
    disk_path: str = ""
    disk_gib: float = 0.0
    lmcache: str = ""

    def __post_init__(self) -> None:
        for name in ("cpu_gib", "disk_gib"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} is {value}, but must be 0 or more GiB", param=name)
        if bool(self.disk_path) != (self.disk_gib > 0):
            missing = "disk_gib" if self.disk_path else "disk_path"
            raise ConfigError(
                f"disk_path is {self.disk_path!r} and disk_gib {self.disk_gib:g}: a tier on disk"
                " needs both a folder and a size above 0",
                param=missing,
            )
        if self.lmcache and self.lmcache != AUTO:
            check_address("lmcache", self.lmcache)
        if self.lower and not self.cpu_gib:
            raise ConfigError(
                f"cpu_gib is 0, but blocks reach {' and '.join(self.lower)} through host memory:"
                " give cpu_gib some GiB too",
                param="cpu_gib",
            )

    @property
    def lower(self) -> tuple[str, ...]:
        """The fields that turn on tiers below host memory."""
        return tuple(name for name in ("disk_path", "lmcache") if getattr(self, name))
