"""API keys, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from baton.protos.errors import AuthenticationError


class ApiKeys:
    """Who may call. Without keys everybody may. Keeps digests, never the keys."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def check(self, authorization: str | None) -> None:
        """`authorization` is the header's value. Raises AuthenticationError."""
        if not self._digests:
            return
        if authorization is None:
            raise AuthenticationError(
                "no API key was sent: put 'Authorization: Bearer KEY' into the request"
            )
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        # Every key is compared, so that time tells nothing about which one was close.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise AuthenticationError("the API key is not known here: check it")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
