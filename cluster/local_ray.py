"""A Ray of our own on this machine: private directory, private token, few processes, nothing left
behind.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ray

from baton.cluster.config import BatonConfig, PoolConfig
from baton.protos.errors import ConfigError, UnavailableError

# Ray puts unix sockets about 60 characters below its directory, and a socket's path has at most
# 107.
MAX_STATE_DIR_CHARS = 44
# What Ray's own processes, a gateway, and a worker beside its model hold resident, measured.
RAY_BYTES = 900 << 20
WORKER_BYTES = 500 << 20


def make_state_dir() -> Path:
    """A fresh private directory for logs and sockets; under /tmp where the usual place has a long
    name.
    """
    path = Path(tempfile.mkdtemp(prefix="baton-"))
    if len(str(path)) > MAX_STATE_DIR_CHARS:
        path.rmdir()
        path = Path(tempfile.mkdtemp(prefix="baton-", dir="/tmp"))
    return path


def start_private_ray(config: BatonConfig, state_dir: Path) -> None:
    """Starts Ray for this process alone. Its processes end when this one does, however it ends.

    Raises UnavailableError when Ray does not come up.
    """
    # A token of this run's own: nobody else can attach, and none is written to the home directory.
    # (Ray turns token authentication on by itself, unless RAY_AUTH_MODE says otherwise.)
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray would give workers the lowest priority but four (nice 15): anything else on this machine
    # would go before the model.
    os.environ.setdefault("RAY_worker_niceness", "0")
    workers = (config.prefill, config.decode)
    # Logical CPUs: they only have to be enough for every worker, for gateways and for Serve.
    num_cpus = math.ceil(sum(p.max_workers * p.num_ranks * p.num_cpus for p in workers))
    num_cpus += config.gateway_replicas
    wants_gpus = any(p.num_gpus != 0 and p.engine.device != "cpu" for p in workers)
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus + 1,
            num_gpus=None if wants_gpus else 0,
            include_dashboard=False,
            object_store_memory=config.ray.object_store_bytes,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.WARNING,
            _temp_dir=str(state_dir),
        )
    # All kinds: a node that takes too long to start is a bare Exception.
    except Exception as error:
        raise UnavailableError(f"Ray did not start: {_first_line(error)}") from error


def connect_ray(config: BatonConfig) -> None:
    """Attaches to the cluster at `ray.address`. Raises UnavailableError."""
    try:
        ray.init(address=config.ray.address, log_to_driver=False, logging_level=logging.WARNING)
    except (RuntimeError, ValueError, ConnectionError, TimeoutError, OSError) as error:
        raise UnavailableError(
            f"no Ray cluster answers at ray.address {config.ray.address!r}: {_first_line(error)}"
        ) from error


def check_memory(config: BatonConfig) -> None:
    """Raises ConfigError when the workers' models and KV pools cannot fit into this machine's
    memory.
    """
    wants_gpus = any(p.num_gpus != 0 and p.engine.device != "cpu" for p in _pools(config))
    if wants_gpus and any(Path("/dev").glob("nvidia[0-9]*")):
        return
    needed = RAY_BYTES + sum(p.min_replicas * worker_bytes(p) for p in _pools(config))
    available = available_bytes()
    if available is not None and needed > available:
        raise ConfigError(
            f"the workers need about {_gib(needed)} of memory and {_gib(available)} are available: "
            "lower engine.kv_cache_bytes or the number of replicas, or take a smaller model",
            param="engine.kv_cache_bytes",
        )


def worker_bytes(pool: PoolConfig) -> int:
    """About what one worker of this pool holds in memory on CPU: weights as float32, and its KV
    pool.
    """
    weights = sum(f.stat().st_size for f in Path(pool.engine.model_dir).glob("*.safetensors"))
    return 2 * weights + pool.engine.kv_cache_bytes + pool.num_ranks * WORKER_BYTES


def available_bytes() -> int | None:
    """Memory that this machine, or this container if it has a limit, can still give; None:
    unknown.
    """
    amounts = [_meminfo_available(), _cgroup_available()]
    known = [a for a in amounts if a is not None]
    return min(known) if known else None


def remove_state_dir(state_dir: Path) -> None:
    """Deletes the private directory. Ray's last processes may still be writing for a moment."""
    shutil.rmtree(state_dir, ignore_errors=True)


def _pools(config: BatonConfig) -> tuple[PoolConfig, PoolConfig]:
    return config.prefill, config.decode


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_available() -> int | None:
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used)


def _gib(amount: int) -> str:
    return f"{amount / (1 << 30):.1f} GiB"


def _first_line(error: BaseException) -> Any:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
