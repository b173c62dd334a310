"""API keys, compared in constant time, and whose they are."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from baton.gateway.tenants import EVERYBODY, TenantConfig, key_digest
from baton.protos.errors import AuthenticationError


class ApiKeys:
    """Who may call. Without tenants everybody may. Keeps digests, never the keys."""

    def __init__(self, tenants: Sequence[TenantConfig]) -> None:
        self._owners = tuple((key_digest(key), t.name) for t in tenants for key in t.keys)

    def check(self, authorization: str | None) -> str:
        """The tenant's name. `authorization` is the header's value. Raises AuthenticationError."""
        if not self._owners:
            return EVERYBODY
        if authorization is None:
            raise AuthenticationError(
                "no API key was sent: put 'Authorization: Bearer KEY' into the request"
            )
        scheme, _, key = authorization.partition(" ")
        given = key_digest(key.strip())
        # Every key is compared, so that time tells nothing about which one was close.
        owners = [name for digest, name in self._owners if hmac.compare_digest(given, digest)]
        if scheme.lower() != "bearer" or not owners:
            raise AuthenticationError("the API key is not known here: check it")
        return owners[0]
