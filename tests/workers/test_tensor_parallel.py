"""Workers whose models are on several ranks: same tokens, KV from rank to rank, one fate."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest
from tests.engine.parallel.ranks import ThreadRanks
from tests.workers.conftest import Pair, engine_config
from tests.workers.probe import SECRET, Probe
from tests.workers.test_pair import GREEDY, prompts, run_alone

from baton.decode_worker.config import DecodeWorkerConfig
from baton.decode_worker.worker import DecodeWorker
from baton.engine.parallel.hosts import ProcessRanks, RankHost
from baton.prefill_worker.config import PrefillWorkerConfig
from baton.prefill_worker.worker import PrefillWorker
from baton.protos.types import Role, SamplingParams


@asynccontextmanager
async def pair_of(
    prefill_size: int,
    decode_size: int,
    ranks: RankHost,
    *,
    block_sizes: tuple[int, int] = (16, 16),
    connector: str = "nixl",
) -> AsyncIterator[Pair]:
    engines = [
        engine_config(role, tensor_parallel_size=size, block_size=block_size)
        for role, size, block_size in (
            (Role.PREFILL, prefill_size, block_sizes[0]),
            (Role.DECODE, decode_size, block_sizes[1]),
        )
    ]
    prefill = PrefillWorker(
        PrefillWorkerConfig(engine=engines[0], secret=SECRET, connector=connector), ranks=ranks
    )
    decode = DecodeWorker(
        DecodeWorkerConfig(
            engine=engines[1],
            secret=SECRET,
            connector=connector,
            prefill_timeout_s=60.0,
            handshake_timeout_s=60.0,
            lease_s=1.0,
        ),
        ranks=ranks,
    )
    yield Pair(prefill, decode, await prefill.start(), await decode.start())
    await decode.close()
    await prefill.close()


@pytest.mark.parametrize(
    ("connector", "prefill_size", "decode_size", "block_sizes"),
    [("nixl", 2, 2, (16, 16)), ("nccl", 1, 2, (16, 24)), ("nixl", 4, 2, (24, 8))],
)
async def test_kv_goes_from_ranks_to_ranks(
    connector: str, prefill_size: int, decode_size: int, block_sizes: tuple[int, int]
) -> None:
    requests = [(prompt, GREEDY) for prompt in prompts(4, seed=prefill_size)]
    expected = await asyncio.to_thread(run_alone, requests)
    async with (
        pair_of(
            prefill_size, decode_size, ThreadRanks(), block_sizes=block_sizes, connector=connector
        ) as pair,
        Probe(pair.decode_member) as gateway,
    ):
        for _ in ("cold", "all known"):
            handles = [gateway.submit(*r, prefill=[pair.prefill_member]) for r in requests]
            answers = [await gateway.wait(handle) for handle in handles]
            assert [a.done.fallback_reason for a in answers if a.done] == [""] * 4
            assert [a.done.prefilled_by for a in answers if a.done] == ["prefill-0"] * 4
            assert [a.tokens for a in answers] == expected
        # The other way, for the next turn.
        first = list(range(100, 160))
        answer = await gateway.wait(gateway.submit(first, GREEDY))
        both = [*first, *answer.tokens, *range(200, 230)]
        (second,) = await asyncio.to_thread(run_alone, [(both, GREEDY)])
        lender = pair.decode_member
        handle = gateway.submit(both, GREEDY, prefill=[pair.prefill_member], pull_from=lender)
        answer = await gateway.wait(handle)
        assert answer.tokens == second
        assert answer.done is not None
        assert answer.done.num_pulled_tokens >= 64
        await pair.check_all_free()


def rank_processes() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "parallel.process" in p.cmdline()[-1]]


async def test_a_lost_rank_ends_its_worker_and_nothing_else() -> None:
    endless = SamplingParams(temperature=0.0, max_tokens=3000, ignore_eos=True)
    async with (
        pair_of(2, 2, ProcessRanks()) as pair,
        Probe(pair.decode_member) as gateway,
    ):
        prompt = prompts(7)[6]
        answer = await gateway.wait(gateway.submit(prompt, GREEDY, prefill=[pair.prefill_member]))
        assert answer.done is not None
        assert answer.done.prefilled_by == "prefill-0"
        # The prefill worker was started first.
        of_prefill, of_decode = rank_processes()
        os.kill(of_prefill.pid, signal.SIGKILL)
        other = prompts(8)[7]
        answer = await gateway.wait(gateway.submit(other, GREEDY, prefill=[pair.prefill_member]))
        assert answer.done is not None
        assert answer.done.finish_reason == "length", answer.done
        assert answer.done.prefilled_by == ""
        assert "rank 1 of 2 is gone: its process ended with -9" in str(pair.prefill.failure)

        running = gateway.submit([5, 6, 7], endless)
        os.kill(of_decode.pid, signal.SIGKILL)
        answer = await gateway.wait(running)
        assert answer.done is not None
        assert answer.done.error_code == "worker_lost"
        assert "rank 1 of 2 is gone: its process ended with -9" in str(pair.decode.failure)
