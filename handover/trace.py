"""What is told of a prompt that was computed for another worker: its spans, its line in the log."""

from __future__ import annotations

import logging

from baton.handover.jobs import Job, JobState
from baton.protos.errors import CancelledError
from baton.protos.logs import fields
from baton.protos.tracing import Tracing

_log = logging.getLogger(__name__)


def trace_job(tracing: Tracing, job: Job, now_s: float) -> None:
    """Its computation and the writing of its KV, which begin and end on their own."""
    end_s = job.first_token_s or now_s
    error = CancelledError.default_code if job.state is JobState.CANCELLED else ""
    tracing.begin("baton.prefill", job.traceparent, job.queued_s).end(
        {
            "request_id": job.request_id,
            "prompt_tokens": job.num_tokens,
            "cached_tokens": job.num_cached_tokens,
            "pulled_tokens": job.num_pulled_tokens,
            "queue_s": (job.started_s or end_s) - job.queued_s,
        },
        end_s,
        error="" if job.first_token_s else error,
    )
    if job.num_pushed_bytes:
        tracing.begin("baton.transfer", job.traceparent, job.posted_s).end(
            {"bytes": job.num_pushed_bytes, "to": job.owner.worker_id},
            job.pushed_s,
            error=error,
        )


def log_job(job: Job, adapter: str) -> None:
    """It is over, and its KV is the other worker's business."""
    if not _log.isEnabledFor(logging.INFO):
        return
    about = fields(
        request_id=job.of_request,
        attempt=job.request_id,
        adapter=adapter,
        worker=job.owner.worker_id,
        prompt_tokens=job.num_tokens,
        cached_tokens=job.num_cached_tokens,
        outcome=CancelledError.default_code if job.state is JobState.CANCELLED else "ok",
        queue_s=round((job.started_s or job.queued_s) - job.queued_s, 6),
        prefill_s=round(job.first_token_s - job.started_s, 6) if job.first_token_s else None,
    )
    _log.info("prompt computed for another worker", extra=about)
