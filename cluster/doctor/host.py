"""What the operating system gives: ports, shared memory, file descriptors, locked memory."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from baton.cluster.config import BatonConfig
from baton.cluster.doctor.finding import Finding, ok, problem, warning
from baton.cluster.ports import check_ports
from baton.protos.errors import ConfigError

SHARED_MEMORY = Path("/dev/shm")
INFINIBAND = Path("/sys/class/infiniband")
# What NCCL and NIXL take beside Ray's objects; as the chart gives it to workers.
COMFORTABLE_SHM_BYTES = 1 << 30
# A gateway's connections to workers and logs, and a worker's or Ray's own.
OWN_FILES = 512
# What Ray advises for nodes with many workers.
ADVISED_FILES = 65536


def check_host(config: BatonConfig) -> list[Finding]:
    """Checks what a gateway and workers of this configuration need here."""
    found = [ports(config), shared_memory(config), file_descriptors(config)]
    return found + locked_memory()


def ports(config: BatonConfig) -> Finding:
    """Whether the first gateway's ports are free."""
    gateway = config.gateway
    try:
        check_ports(gateway)
    except ConfigError as error:
        said, _, fix = error.message.partition("; ")
        return problem(
            "ports", f"{said}.", f"{fix}; or end what listens there, perhaps another `baton serve`."
        )
    names = [str(port) if port else "any" for port in (gateway.http_port, gateway.grpc_port or 0)]
    rpc = "no gRPC" if gateway.grpc_port is None else f"{names[1]} for gRPC"
    return ok("ports", f"{names[0]} for HTTP and {rpc} can be had on {gateway.host}.")


def shared_memory(config: BatonConfig, folder: Path = SHARED_MEMORY) -> Finding:
    """Whether /dev/shm holds Ray's objects and leaves room for transports."""
    try:
        room = os.statvfs(folder)
    except OSError as error:
        return problem(
            "shared memory",
            f"{folder} cannot be read: {error.strerror}.",
            f"mount a tmpfs on {folder}.",
        )
    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    found = f"{_size(free)} of {_size(total)} are free in {folder}."
    least = config.ray.object_store_bytes
    needed = least + COMFORTABLE_SHM_BYTES
    fix = (
        f"give it {_size(needed)} or more: `docker run --shm-size 2g`, `shm` in the chart's "
        f"values, or `mount -o remount,size=2g {folder}`."
    )
    if free < least:
        return problem("shared memory", f"{found} Ray's objects need {_size(least)}.", fix)
    if free < needed:
        return warning("shared memory", f"{found} NCCL and NIXL may want more.", fix)
    return ok("shared memory", found)


def file_descriptors(config: BatonConfig, soft: int | None = None) -> Finding:
    """Whether a process may open a file for each connection. `soft`: the limit, if not this
    process's.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if soft is None else soft
    if limit == resource.RLIM_INFINITY:
        return ok("file descriptors", "A process may open any number of files.")
    requests = config.gateway.max_concurrent_requests
    found = f"A process may open {limit} files."
    fix = f"run `ulimit -n {ADVISED_FILES}` first, or set LimitNOFILE in the service's unit."
    if limit < requests + OWN_FILES:
        wanted = f"A gateway with {requests} requests at a time needs {requests + OWN_FILES}."
        return problem("file descriptors", f"{found} {wanted}", fix)
    return ok("file descriptors", found)


def locked_memory() -> list[Finding]:
    """Network cards read KV pools directly, from memory that must be locked; nothing to say
    without such cards.
    """
    cards = sorted(path.name for path in INFINIBAND.glob("*"))
    if not cards:
        return []
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    found = f"Network cards {', '.join(cards)}."
    if limit == resource.RLIM_INFINITY:
        return [ok("RDMA", f"{found} Memory may be locked without limit.")]
    return [
        warning(
            "RDMA",
            f"{found} Only {_size(limit)} may be locked, so KV pools may not be registered.",
            "run `ulimit -l unlimited`, or give the container the capability IPC_LOCK.",
        )
    ]


def _size(num_bytes: int) -> str:
    if num_bytes < 1 << 30:
        return f"{num_bytes / (1 << 20):.0f} MiB"
    return f"{num_bytes / (1 << 30):.1f} GiB"
