"""The spans of a request that a decode worker owned."""

from __future__ import annotations

from baton.decode_worker.live import Live
from baton.protos.tracing import Span


def end_span(span: Span, live: Live, now_s: float, error: str) -> None:
    """Ends a request's span, and tells its parts; a remote prompt's are its prefill worker's."""
    if live.first_token_s:
        decoding_s = live.first_token_s + live.transfer_s
        if not live.prefilled_by:
            span.child(
                "baton.prefill",
                live.submitted_s,
                live.first_token_s,
                {"prompt_tokens": live.num_prompt_tokens, "cached_tokens": live.num_cached_tokens},
            )
        span.child("baton.decode", min(decoding_s, now_s), now_s, {})
    found: dict[str, str | int] = {
        "request_id": live.request.request_id,
        "prefilled_by": live.prefilled_by,
        "fallback_reason": live.fallback_reason,
        "adapter": live.request.adapter_id,
    }
    span.end({key: value for key, value in found.items() if value}, now_s, error=error)
