"""The next turn's prompt: a prefill worker fetches the answer before it from who decoded it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from tests.workers.conftest import Pair, engine_config, started_pair
from tests.workers.probe import SECRET, Answer, Probe
from tests.workers.test_pair import GREEDY, prompts, run_alone

from baton.decode_worker.config import DecodeWorkerConfig
from baton.decode_worker.worker import DecodeWorker
from baton.gateway.fleet import Fleet
from baton.gateway.fleet_config import FleetConfig, StaticDirectory
from baton.kvtransfer.factory import make_connector
from baton.protos.types import GenerateRequest, Member, Role
from baton.router.config import RouterConfig

FIRST, SAID_NEXT = prompts(9)[8], prompts(7, seed=1)[6]


async def answers_alone() -> tuple[list[int], list[int]]:
    """Two turns of a conversation."""
    (first,) = await asyncio.to_thread(run_alone, [(FIRST, GREEDY)])
    (second,) = await asyncio.to_thread(run_alone, [([*FIRST, *first, *SAID_NEXT], GREEDY)])
    return first, second


@asynccontextmanager
async def second_decode(**settings: Any) -> AsyncIterator[tuple[DecodeWorker, Member]]:
    config = DecodeWorkerConfig(
        engine=engine_config(Role.DECODE), worker_id="decode-1", lease_s=1.0, secret=SECRET
    )
    worker = DecodeWorker(config, **settings)
    member = await worker.start()
    try:
        yield worker, member
    finally:
        await worker.close()


def check(answer: Answer, tokens: list[int], num_pulled: int) -> None:
    assert answer.done is not None
    assert not answer.done.fallback_reason
    assert answer.done.prefilled_by == "prefill-0"
    assert answer.tokens == tokens
    assert answer.done.num_pulled_tokens == num_pulled


@pytest.mark.parametrize(
    ("connector", "prefill_size", "decode_size"),
    [("nixl", 24, 16), ("nccl", 8, 32)],
)
async def test_the_next_turn_is_computed_on_what_was_decoded(
    connector: str, prefill_size: int, decode_size: int
) -> None:
    first, second = await answers_alone()
    both = [*FIRST, *first, *SAID_NEXT]
    engines = [
        engine_config(role, block_size=size)
        for role, size in ((Role.PREFILL, prefill_size), (Role.DECODE, decode_size))
    ]
    async with started_pair(*engines, connector=connector) as pair:
        async with Probe(pair.decode_member) as gateway:
            answer = await gateway.wait(gateway.submit(FIRST, GREEDY))
            assert answer.tokens == first
            # The last token of an answer has no KV yet.
            whole = (len(FIRST) + len(first) - 1) // decode_size * decode_size
            num_pulled = whole // prefill_size * prefill_size
            turn = partial(gateway.submit, both, GREEDY, prefill=[pair.prefill_member])
            answer = await gateway.wait(turn(pull_from=pair.decode_member))
            check(answer, second, num_pulled)
            # It is there now, and nothing has to come.
            answer = await gateway.wait(turn(pull_from=pair.decode_member))
            check(answer, second, 0)
        load = await pair.prefill.load()
        assert (load.num_pulled_tokens, load.num_failed_pulls) == (num_pulled, 0)
        assert (await pair.decode.load()).num_pushed_bytes > 0
        await pair.check_all_free()


async def test_another_decode_worker_goes_on_with_what_the_first_one_has(pair: Pair) -> None:
    first, second = await answers_alone()
    both = [*FIRST, *first, *SAID_NEXT]
    async with (
        second_decode() as (_, member),
        Probe(pair.decode_member) as one,
        Probe(member) as other,
    ):
        await one.wait(one.submit(FIRST, GREEDY))
        # Nobody has connected these two, and the prompt does not wait for long.
        targets = [pair.prefill_member]
        handle = other.submit(both, GREEDY, prefill=targets, pull_from=pair.decode_member)
        check(await other.wait(handle), second, 0)
        assert (await pair.prefill.load()).num_failed_pulls == 1
        longer = [*both, *second, *SAID_NEXT]
        (third,) = await asyncio.to_thread(run_alone, [(longer, GREEDY)])
        one.lend_to(pair.prefill_member)
        await one.wait(one.submit([*both, *second], GREEDY))
        handle = other.submit(longer, GREEDY, prefill=targets, pull_from=pair.decode_member)
        answer = await other.wait(handle)
        assert answer.tokens == third
        assert answer.done is not None
        assert answer.done.num_pulled_tokens >= 16


async def test_a_lender_that_dies_in_the_middle_costs_nothing_but_time(pair: Pair) -> None:
    first, second = await answers_alone()
    both = [*FIRST, *first, *SAID_NEXT]
    held: list[object] = []

    def make(*arguments: Any) -> Any:
        connector = make_connector(*arguments)
        # Writes that are asked for, and never begin.
        connector.push = lambda *args, **_: held.append(args)  # type: ignore[method-assign]
        return connector

    async with second_decode(connectors=make) as (lender, member), Probe(member) as one:
        await one.wait(one.submit(FIRST, GREEDY))
        one.lend_to(pair.prefill_member)
        async with Probe(pair.decode_member) as other:
            handle = other.submit(both, GREEDY, prefill=[pair.prefill_member], pull_from=member)
            async with asyncio.timeout(20):
                while not held:
                    await asyncio.sleep(0.01)
            await lender.close()
            check(await other.wait(handle), second, 0)
    assert (await pair.prefill.load()).num_failed_pulls == 1


async def test_a_gateway_plans_the_pull(pair: Pair) -> None:
    first, second = await answers_alone()
    directory = StaticDirectory([pair.decode_member])
    fleet = Fleet(
        directory,
        RouterConfig(policy="always_remote"),
        gateway_id="test",
        secret=SECRET,
        config=FleetConfig(poll_s=0.05),
    )
    await fleet.start()
    await fleet.wait_ready(30.0)

    async def ask(name: str, prompt: list[int]) -> tuple[Any, list[int]]:
        request = GenerateRequest(request_id=name, prompt_token_ids=prompt, sampling=GREEDY)
        generation = fleet.generate(request)
        return generation, [t async for chunk in generation for t in chunk.token_ids]

    generation, tokens = await ask("one", FIRST)
    assert tokens == first
    assert generation.plan.reason == "no_prefill_worker"
    directory.set_members([pair.decode_member, pair.prefill_member])
    async with asyncio.timeout(20):
        while [view.state for view in fleet.workers()] != ["up", "up"]:
            await asyncio.sleep(0.01)
    generation, tokens = await ask("two", [*FIRST, *first, *SAID_NEXT])
    assert tokens == second
    assert generation.plan.reason == "always_remote,pull"
    assert generation.plan.pull_from == pair.decode_member
    (told,) = fleet.planner.explain("two")
    assert told["pull_from"] == "decode-0"
    num_known = (len(FIRST) + len(first) - 1) // 16 * 16
    assert told["outcome"]["num_pulled_tokens"] == num_known
    assert "pull_from=decode-0" in generation.plan.header()
    await fleet.close()
