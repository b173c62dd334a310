"""A decode worker whose model is on two ranks."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest
from tests.workers.conftest import engine_config
from tests.workers.probe import Probe
from tests.workers.test_pair import GREEDY, prompts, run_alone

from baton.decode_worker.config import DecodeWorkerConfig
from baton.decode_worker.worker import DecodeWorker
from baton.prefill_worker.config import PrefillWorkerConfig
from baton.prefill_worker.worker import PrefillWorker
from baton.protos.errors import ConfigError
from baton.protos.types import Member, Role, SamplingParams


async def test_prompts_are_computed_here_and_a_lost_rank_ends_the_worker() -> None:
    config = DecodeWorkerConfig(engine=engine_config(Role.DECODE, tensor_parallel_size=2))
    worker = DecodeWorker(config)
    member = await worker.start()
    requests = [(prompt, GREEDY) for prompt in prompts(3)]
    expected = await asyncio.to_thread(run_alone, requests)
    elsewhere = Member(
        worker_id="prefill-0", incarnation="i", role=Role.PREFILL, address="127.0.0.1:1", model="m"
    )
    async with Probe(member) as gateway:
        handles = [gateway.submit(*r, prefill=[elsewhere]) for r in requests]
        answers = [await gateway.wait(handle) for handle in handles]
        assert [a.tokens for a in answers] == expected
        assert [a.done.fallback_reason for a in answers if a.done] == [
            "a tensor-parallel decode worker receives no KV yet"
        ] * 3

        endless = SamplingParams(temperature=0.0, max_tokens=3000, ignore_eos=True)
        running = gateway.submit([5, 6, 7], endless)
        (rank,) = (p for p in psutil.Process().children() if "parallel.process" in p.cmdline()[-1])
        os.kill(rank.pid, signal.SIGKILL)
        answer = await gateway.wait(running)
        assert answer.done is not None
        assert answer.done.error_code == "worker_lost"
        assert "rank 1 of 2 is gone: its process ended with -9" in str(worker.failure)
    await worker.close()


async def test_a_prefill_worker_on_several_ranks_is_refused() -> None:
    config = PrefillWorkerConfig(engine=engine_config(Role.PREFILL, tensor_parallel_size=2))
    with pytest.raises(ConfigError, match="tensor_parallel_size is 2, but prefill workers run on"):
        await PrefillWorker(config).start()
