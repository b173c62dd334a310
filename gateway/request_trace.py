"""What a gateway tells of a request: its span, its line in the log, and each decision's span."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

from baton.gateway.call import Job
from baton.gateway.fleet_generation import Generation
from baton.protos.clock import Clock
from baton.protos.errors import BatonError, CancelledError
from baton.protos.logs import fields
from baton.protos.tracing import Tracing
from baton.router.plan import Plan

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def request_span(
    tracing: Tracing | None, job: Job, received_s: float, clock: Clock
) -> Iterator[tuple[Job, dict[str, str | int]]]:
    """The job, whose parts go under this span, and attributes that may be added to."""
    call = job.call
    found: dict[str, str | int] = {
        "request_id": call.request_id,
        "tenant": call.tenant,
        "model": call.model or "",
        "prompt_tokens": job.num_prompt_tokens,
    }
    span = None
    if tracing is not None:
        span = tracing.begin("baton.request", call.traceparent, received_s)
        job = replace(job, call=replace(call, traceparent=span.traceparent))
    error = BatonError.default_code
    try:
        yield job, found
        error = ""
    except BatonError as failure:
        error = failure.code
        raise
    except (asyncio.CancelledError, GeneratorExit):
        error = CancelledError.default_code
        raise
    finally:
        if span is not None:
            span.end(found, error=error)
        if _log.isEnabledFor(logging.INFO):
            about = fields(
                **found,
                client_request_id=call.client_request_id,
                adapter=call.model if job.adapter_id else "",
                outcome=error or "ok",
                e2e_s=round(clock.now_s() - received_s, 6),
            )
            _log.info("request ended", extra=about)


def log_failure(error: BatonError, request_id: str = "", tenant: str = "") -> None:
    """Why a request got no answer. What was wrong with one is left out: it may quote the prompt."""
    about = fields(request_id=request_id, tenant=tenant, outcome=error.code, param=error.param)
    if error.http_status >= 500:
        _log.warning("a request failed: %s", error.message, extra=about)
    else:
        _log.info("a request was refused", extra=about)


def log_replay(generation: Generation, error: BatonError) -> None:
    """A request goes on elsewhere: its decode worker failed it."""
    about = fields(
        request_id=generation.request.request_id,
        worker=generation.worker_id,
        outcome=error.code,
        output_tokens=generation.num_received,
    )
    _log.warning("a request goes on elsewhere: %s", error.message, extra=about)


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
