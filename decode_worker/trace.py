"""What is told of a request that a decode worker owned: its spans, its line in the log."""

from __future__ import annotations

import logging

from baton.decode_worker.live import Live
from baton.protos.logs import fields
from baton.protos.tracing import Span

_log = logging.getLogger(__name__)


def end_span(span: Span, live: Live, now_s: float, error: str) -> None:
    """Ends a request's span, and tells its parts; a remote prompt's are its prefill worker's."""
    if live.first_token_s:
        decoding_s = live.first_token_s + live.transfer_s
        if not live.prefilled_by:
            span.child(
                "baton.prefill",
                live.submitted_s,
                live.first_token_s,
                {
                    "prompt_tokens": live.num_prompt_tokens,
                    "cached_tokens": live.num_cached_tokens,
                    "queue_s": live.queue_s,
                },
            )
        span.child("baton.decode", min(decoding_s, now_s), now_s, {})
    found: dict[str, str | int] = {
        "request_id": live.request.request_id,
        "prefilled_by": live.prefilled_by,
        "fallback_reason": live.fallback_reason,
        "adapter": live.request.adapter_id,
    }
    span.end({key: value for key, value in found.items() if value}, now_s, error=error)


def log_end(live: Live, now_s: float, error: str, adapter: str) -> None:
    """One line for each request; of a replayed one, for each of its workers."""
    if not _log.isEnabledFor(logging.INFO):
        return
    about = fields(
        request_id=live.request.request_id,
        attempt=live.attempt_id,
        adapter=adapter,
        outcome=error or "ok",
        prefilled_by=live.prefilled_by,
        fallback_reason=live.fallback_reason,
        prompt_tokens=live.num_prompt_tokens,
        cached_tokens=live.num_cached_tokens,
        first_token_s=round(live.first_token_s - live.submitted_s, 6)
        if live.first_token_s
        else None,
        seconds=round(now_s - live.submitted_s, 6),
    )
    _log.info("request ended", extra=about)
