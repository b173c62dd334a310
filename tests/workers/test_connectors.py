"""Greedy tokens are the same however KV travels, between which blocks, and whatever is cached."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from tests.kvtransfer.lmcache_server import needs_lmcache, running_server
from tests.workers.conftest import engine_config, started_pair
from tests.workers.probe import Answer, Probe
from tests.workers.test_pair import GREEDY, prompts, run_alone

from baton.kvtransfer.lmcache.config import AUTO
from baton.kvtransfer.lmcache.server import LMCacheServer
from baton.protos.types import Role

CONNECTORS = ["nixl", "nccl", pytest.param("lmcache", marks=needs_lmcache)]


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize(("prefill_size", "decode_size"), [(16, 16), (16, 8), (8, 32), (24, 16)])
async def test_remote_equals_alone(
    connector: str, prefill_size: int, decode_size: int, request: pytest.FixtureRequest
) -> None:
    lmcache = AUTO
    if connector == "lmcache":
        server: LMCacheServer = request.getfixturevalue("lmcache_server")
        lmcache = server.address
    asked = [prompt for prompt in prompts(9) if len(prompt) > 1]
    expected = await asyncio.to_thread(run_alone, [(prompt, GREEDY) for prompt in asked])
    async with started_pair(
        engine_config(Role.PREFILL, block_size=prefill_size),
        engine_config(Role.DECODE, block_size=decode_size),
        connector=connector,
        lmcache=lmcache,
    ) as pair:
        async with Probe(pair.decode_member) as gateway:

            async def remote(prompt: list[int]) -> Answer:
                handle = gateway.submit(prompt, GREEDY, prefill=[pair.prefill_member])
                return await gateway.wait(handle)

            # Half of it is known to the decode worker only, to the prefill worker only, or to both.
            for known_to, prompt in zip(("decode", "prefill", "both"), asked[-3:], strict=True):
                head = prompt[: len(prompt) // 2]
                if known_to != "prefill":
                    await gateway.wait(gateway.submit(head, GREEDY))
                if known_to != "decode":
                    await remote(head)
            for round_ in ("cold, or half known", "all known"):
                answers = await asyncio.gather(*(remote(prompt) for prompt in asked))
                assert [a.tokens for a in answers] == expected, round_
                for answer in answers:
                    assert answer.done is not None
                    assert not answer.done.fallback_reason
                    assert answer.done.prefilled_by == "prefill-0"
        await pair.check_all_free()


@needs_lmcache
async def test_a_killed_lmcache_server_fails_no_request_and_its_successor_is_used() -> None:
    asked = [prompt for prompt in prompts(10) if len(prompt) > 1]
    expected = await asyncio.to_thread(run_alone, [(prompt, GREEDY) for prompt in asked])
    with running_server() as server:
        async with (
            started_pair(
                engine_config(Role.PREFILL, prefix_cache=False),
                engine_config(Role.DECODE, prefix_cache=False),
                connector="lmcache",
                lmcache=server.address,
            ) as pair,
            Probe(pair.decode_member) as gateway,
        ):

            async def remote(prompt: list[int]) -> Answer:
                handle = gateway.submit(prompt, GREEDY, prefill=[pair.prefill_member])
                return await gateway.wait(handle)

            first = await remote(asked[0])
            assert first.done is not None
            assert first.done.prefilled_by == "prefill-0"
            assert server.pid is not None
            under_way = [asyncio.create_task(remote(prompt)) for prompt in asked]
            await asyncio.sleep(0.02)
            os.kill(server.pid, signal.SIGKILL)
            answers = [first, *await asyncio.gather(*under_way)]
            assert [a.tokens for a in answers] == [expected[0], *expected]
            end_s = time.monotonic() + 120
            again = first
            while again is first or again.done is None or not again.done.prefilled_by:
                assert time.monotonic() < end_s
                again = await remote(asked[-1])
                assert again.tokens == expected[-1]
            assert server.num_restarts == 1
            await pair.check_all_free()
