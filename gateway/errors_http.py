"""Errors as OpenAI's error object: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import math

import msgspec

from baton.protos.errors import BatonError, OverloadedError, UnavailableError

Headers = list[tuple[bytes, bytes]]

_RETRY_UNAVAILABLE_S = 1


def error_body(error: BatonError) -> bytes:
    """The JSON document of one error."""
    return msgspec.json.encode(
        {
            "error": {
                "message": error.message,
                "type": error.error_type,
                "param": error.param,
                "code": error.code,
            }
        }
    )


def error_headers(error: BatonError) -> Headers:
    """What a client needs beside the body: when to retry, how to authenticate."""
    if isinstance(error, OverloadedError):
        return [(b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode())]
    if isinstance(error, UnavailableError):
        return [(b"retry-after", str(_RETRY_UNAVAILABLE_S).encode())]
    if error.http_status == 401:
        return [(b"www-authenticate", b"Bearer")]
    return []
