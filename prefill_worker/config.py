"""Configuration of one prefill worker."""

from __future__ import annotations

from dataclasses import dataclass

from baton.handover.config import WorkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillWorkerConfig(WorkerConfig):
    """See `WorkerConfig`."""

    worker_id: str = "prefill-0"
