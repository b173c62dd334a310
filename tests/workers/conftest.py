"""A prefill and a decode worker in this process, over real gRPC and real NIXL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from baton.decode_worker.config import DecodeWorkerConfig
from baton.decode_worker.worker import DecodeWorker
from baton.engine.config import EngineConfig
from baton.engine.parallel.hosts import RankHost
from baton.kvtransfer.lmcache.config import AUTO
from baton.prefill_worker.config import PrefillWorkerConfig
from baton.prefill_worker.worker import PrefillWorker
from baton.protos.types import Member, Role

MODEL = Path(__file__).resolve().parents[2] / "models" / "baton-tiny"


def engine_config(role: Role, **changes: object) -> EngineConfig:
    settings: dict[str, object] = {
        "model_dir": str(MODEL),
        "role": role,
        "num_blocks": 256,
        "max_running": 16,
        "max_step_tokens": 64,
    }
    return EngineConfig(**{**settings, **changes})  # type: ignore[arg-type]


@dataclass
class Pair:
    prefill: PrefillWorker
    decode: DecodeWorker
    prefill_member: Member
    decode_member: Member

    async def check_all_free(self) -> None:
        """Every block comes back, on both sides, within seconds."""
        for worker in (self.prefill, self.decode):
            async with asyncio.timeout(20):
                while worker.num_requests():
                    await asyncio.sleep(0.02)
                while (load := await worker.load()).free_blocks != load.total_blocks:
                    await asyncio.sleep(0.02)
            await worker.check_integrity()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@asynccontextmanager
async def started_pair(
    prefill_engine: EngineConfig,
    decode_engine: EngineConfig,
    *,
    connector: str = "nixl",
    lmcache: str = AUTO,
    ranks: RankHost | None = None,
) -> AsyncIterator[Pair]:
    """Two workers that know each other's secret, until the end of the block."""
    common = {"connector": connector, "lmcache": lmcache, "secret": "of the test", "lease_s": 1.0}
    prefill = PrefillWorker(PrefillWorkerConfig(engine=prefill_engine, **common), ranks=ranks)
    decode = DecodeWorker(
        DecodeWorkerConfig(engine=decode_engine, prefill_timeout_s=20.0, **common), ranks=ranks
    )
    both = Pair(prefill, decode, await prefill.start(), await decode.start())
    try:
        yield both
    finally:
        await decode.close()
        await prefill.close()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with started_pair(engine_config(Role.PREFILL), engine_config(Role.DECODE)) as both:
        yield both
        await both.check_all_free()
