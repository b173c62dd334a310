"""A prefix that any worker computed comes back from LMCache, and a worker without it computes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.driving import VOCAB, save_model
from tests.engine.tiers.test_tiers import MODEL_BLOCK_BYTES, Served
from tests.kvtransfer.lmcache_server import needs_lmcache, running_server

from baton.kvtransfer.lmcache.server import LMCacheServer
from baton.kvtransfer.tiers.config import TierConfig
from baton.protos.errors import ConfigError

pytestmark = needs_lmcache


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(3, VOCAB, (100,), generator=generator).tolist() for _ in range(count)]


def below(address: str) -> TierConfig:
    """Host memory holds one of the prompts, LMCache all of them."""
    return TierConfig(cpu_gib=24 * MODEL_BLOCK_BYTES / (1 << 30), lmcache=address)


def patiently(call: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 150
    while not call():
        assert time.monotonic() < end_s


def num_stored(served: Served) -> int:
    found = served.engine.statistics().tiers
    assert found is not None
    return found.lower[0].num_stored


def test_what_one_worker_computed_another_loads_and_answers_alike(
    tmp_path: Path, lmcache_server: LMCacheServer
) -> None:
    save_model(tmp_path, "Llama")
    asked = prompts(4)
    plain = Served(tmp_path, TierConfig())
    expected = [plain.answer(f"r{i}", prompt) for i, prompt in enumerate(asked)]
    plain.close()
    first = Served(tmp_path, below(lmcache_server.address))
    for round_ in range(2):
        found = [first.answer(f"{round_}.{i}", prompt) for i, prompt in enumerate(asked)]
        assert found == expected
    patiently(lambda: num_stored(first) >= 12)
    first.close()

    # It has nothing of its own: not in its pool, not in host memory.
    second = Served(tmp_path, below(lmcache_server.address))

    def came_back() -> bool:
        found = [second.answer(f"{time.monotonic()}.{i}", p) for i, p in enumerate(asked)]
        assert found == expected
        tiers = second.engine.statistics().tiers
        assert tiers is not None
        return tiers.lower[0].num_hits > 0

    patiently(came_back)
    second.close()


def test_a_server_that_is_killed_or_late_costs_no_request(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama")
    asked = prompts(3)
    plain = Served(tmp_path, TierConfig())
    expected = [plain.answer(f"r{i}", prompt) for i, prompt in enumerate(asked)]
    plain.close()
    with running_server() as server:
        served = Served(tmp_path, below(server.address))
        assert [served.answer(f"a{i}", prompt) for i, prompt in enumerate(asked)] == expected
        patiently(lambda: num_stored(served) > 0)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        for round_ in range(3):
            found = [served.answer(f"{round_}.{i}", p) for i, p in enumerate(asked)]
            assert found == expected
        before = num_stored(served)

        def heals() -> bool:
            found = [served.answer(f"{time.monotonic()}.{i}", p) for i, p in enumerate(asked)]
            assert found == expected
            return server.num_restarts == 1 and num_stored(served) > before

        patiently(heals)
        found = served.close()
        assert found is not None
        assert found.lower[0].num_errors > 0


def test_a_tier_without_a_server_is_refused_by_its_field(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama")
    with pytest.raises(ConfigError, match=r"kv_tiers\.lmcache is auto"):
        Served(tmp_path, below("auto"))
