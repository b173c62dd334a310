"""The spans of a prompt that was computed for another worker."""

from __future__ import annotations

from baton.handover.jobs import Job, JobState
from baton.protos.errors import CancelledError
from baton.protos.tracing import Tracing


def trace_job(tracing: Tracing, job: Job, now_s: float) -> None:
    """Its computation and the writing of its KV, which begin and end on their own."""
    end_s = job.first_token_s or now_s
    error = CancelledError.default_code if job.state is JobState.CANCELLED else ""
    tracing.begin("baton.prefill", job.traceparent, job.queued_s).end(
        {
            "request_id": job.request_id,
            "prompt_tokens": job.num_tokens,
            "cached_tokens": job.num_cached_tokens,
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
