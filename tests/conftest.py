"""What tests of several parts share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.kvtransfer.lmcache_server import running_server

from baton.kvtransfer.lmcache.server import LMCacheServer


@pytest.fixture(scope="session")
def lmcache_server() -> Iterator[LMCacheServer]:
    """One for all tests that do not end it; they are marked `needs_lmcache`."""
    with running_server() as server:
        yield server
