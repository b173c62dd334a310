"""Greedy tokens are the same however KV travels, between which blocks, and whatever is cached."""

from __future__ import annotations

import asyncio

import pytest
from tests.workers.conftest import engine_config, started_pair
from tests.workers.probe import Answer, Probe
from tests.workers.test_pair import GREEDY, prompts, run_alone

from baton.protos.types import Role


@pytest.mark.parametrize("connector", ["nixl", "nccl"])
@pytest.mark.parametrize(("prefill_size", "decode_size"), [(16, 16), (16, 8), (8, 32), (24, 16)])
async def test_remote_equals_alone(connector: str, prefill_size: int, decode_size: int) -> None:
    asked = [prompt for prompt in prompts(9) if len(prompt) > 1]
    expected = await asyncio.to_thread(run_alone, [(prompt, GREEDY) for prompt in asked])
    async with started_pair(
        engine_config(Role.PREFILL, block_size=prefill_size),
        engine_config(Role.DECODE, block_size=decode_size),
        connector=connector,
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
