"""Configuration of one decode worker."""

from __future__ import annotations

from dataclasses import dataclass

from baton.handover.config import WorkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWorkerConfig(WorkerConfig):
    """Times are seconds. A remote prefill that is late falls back to a local one."""

    worker_id: str = "decode-0"
    # Requests owned at once, waiting ones included; beyond it: OverloadedError.
    max_requests: int = 4096
    # Connecting to a prefill worker, including the first exchange over the KV wire.
    handshake_timeout_s: float = 15.0
    # From asking a prefill worker until all KV is here; at most half of the request's own time.
    prefill_timeout_s: float = 60.0
    # Used for requests that come without a deadline.
    max_request_s: float = 3600.0
    # A worker that leaves serves the KV of the requests it hands back for at most this long.
    move_s: float = 10.0
