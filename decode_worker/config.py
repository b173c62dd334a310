"""Configuration of one decode worker."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from baton.engine.config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWorkerConfig:
    """Times are seconds. A remote prefill that is late falls back to a local one."""

    engine: EngineConfig
    worker_id: str = "decode-0"
    incarnation: str = field(default_factory=lambda: uuid.uuid4().hex)
    host: str = "127.0.0.1"
    # 0 takes any free port, which the directory publishes.
    port: int = 0
    model_name: str = ""
    # How KV travels; the same for both pools.
    connector: str = "nixl"
    # Shared by all workers of a cluster: who does not know it gets no access to this KV pool.
    secret: str = field(default="", repr=False)
    # Requests owned at once, waiting ones included; beyond it: OverloadedError.
    max_requests: int = 4096
    # Connecting to a prefill worker, including the first exchange over the KV wire.
    handshake_timeout_s: float = 15.0
    # From asking a prefill worker until all KV is here; at most half of the request's own time.
    prefill_timeout_s: float = 60.0
    # A worker that is no longer reachable writes nothing after this long; its blocks wait for it.
    lease_s: float = 30.0
    # Used for requests that come without a deadline.
    max_request_s: float = 3600.0
    report_interval_s: float = 0.5
