"""The spans that a gateway makes: of a whole request, and of each decision where it runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace

from baton.gateway.call import Job
from baton.gateway.fleet_generation import Generation
from baton.protos.errors import BatonError, CancelledError
from baton.protos.tracing import Tracing
from baton.router.plan import Plan


@contextlib.contextmanager
def request_span(
    tracing: Tracing | None, job: Job, received_s: float
) -> Iterator[tuple[Job, dict[str, str | int]]]:
    """The job, whose parts go under this span, and attributes that may be added to."""
    call = job.call
    found: dict[str, str | int] = {"request_id": call.request_id, "tenant": call.tenant}
    if tracing is None:
        yield job, found
        return
    found |= {"model": call.model or "", "prompt_tokens": job.num_prompt_tokens}
    span = tracing.begin("baton.request", call.traceparent, received_s)
    error = BatonError.default_code
    try:
        yield replace(job, call=replace(call, traceparent=span.traceparent)), found
        error = ""
    except BatonError as failure:
        error = failure.code
        raise
    except (asyncio.CancelledError, GeneratorExit):
        error = CancelledError.default_code
        raise
    finally:
        span.end(found, error=error)


def trace_decision(tracing: Tracing, generation: Generation, plan: Plan, start_s: float) -> None:
    """Where a request goes, and why; it began to be thought about at `start_s`."""
    tracing.begin("baton.route", generation.traceparent, start_s).end(
        {
            "request_id": generation.request.request_id,
            "plan_kind": "remote" if plan.prefill else "local",
            "plan_reason": plan.reason,
            "decode": plan.decode.worker_id,
            "prefill": plan.prefill[0].worker_id if plan.prefill else "",
            "predicted_ttft_s": plan.ttft_s,
            "cached_tokens": plan.num_cached_tokens,
            "replays": generation.num_replays,
        }
    )
