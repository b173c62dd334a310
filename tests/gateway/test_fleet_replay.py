"""Workers that die, stop, restart or leave while they stream: the consumer must not notice."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.gateway.fleet_fixtures import (
    FAST,
    StubProcess,
    answer,
    fleet_of,
    request,
    stub,
    stub_process,
    tokens_of,
    until,
)

from baton.gateway.fleet import Fleet, StaticDirectory
from baton.protos.errors import AdapterNotFoundError, UnavailableError
from baton.protos.types import FinishReason


async def test_kill_minus_nine_mid_stream_is_not_noticed() -> None:
    async with (
        stub_process("d0") as p0,
        stub_process("d1") as p1,
        fleet_of(p0.member, p1.member) as fleet,
    ):
        prompts = [(i, 5) for i in range(32)]
        generations = [fleet.generate(request(p, max_tokens=60)) for p in prompts]
        streams = [asyncio.create_task(tokens_of(g)) for g in generations]
        await until(lambda: all(g.num_received > 10 for g in generations))
        on_d0 = [g for g in generations if g.worker_id == "d0"]
        assert on_d0
        p0.kill()
        assert await asyncio.gather(*streams) == [answer(p, 60) for p in prompts]
        assert all(g.num_replays == 1 and g.worker_id == "d1" for g in on_d0)
        assert fleet.statistics().num_replayed == len(on_d0)


async def test_a_stopped_worker_is_given_up() -> None:
    config = replace(FAST, lost_after_s=0.8)
    async with (
        stub_process("d0") as p0,
        stub_process("d1") as p1,
        fleet_of(p0.member, p1.member, config=config) as fleet,
    ):
        generation = fleet.generate(request(max_tokens=50))
        stream = asyncio.create_task(tokens_of(generation))
        await until(lambda: generation.num_received > 5)
        by_id: dict[str, StubProcess] = {"d0": p0, "d1": p1}
        by_id[generation.worker_id].stop()
        assert await asyncio.wait_for(stream, 5) == answer(max_tokens=50)
        assert generation.num_replays == 1


async def test_the_only_worker_dies_and_comes_back() -> None:
    async with stub("d0", incarnation="a") as (worker, member):
        directory = StaticDirectory([member])
        async with fleet_of(directory=directory, num_up=1) as fleet:
            generation = fleet.generate(request(max_tokens=40))
            stream = asyncio.create_task(tokens_of(generation))
            await until(lambda: generation.num_received > 5)
            await worker.close()
            await until(lambda: fleet.statistics().num_parked == 1)
            async with stub("d0", incarnation="b") as (_, again):
                directory.set_members([again])
                assert await asyncio.wait_for(stream, 5) == answer(max_tokens=40)
                assert generation.plan.decode.incarnation == "b"


async def test_nobody_left_ends_in_an_error_after_the_tokens() -> None:
    config = replace(FAST, no_worker_wait_s=0.2)
    async with stub("d0") as (worker, member), fleet_of(member, config=config) as fleet:
        generation = fleet.generate(request(max_tokens=10_000))
        await anext(generation)
        await worker.close()
        with pytest.raises(UnavailableError, match=r"within 0.2 s"):
            await tokens_of(generation)


async def test_a_new_incarnation_takes_over_while_the_old_one_finishes() -> None:
    async with (
        stub("d0", incarnation="a") as (_, old),
        stub("d0", incarnation="b") as (new_worker, new),
    ):
        directory = StaticDirectory([old])
        async with fleet_of(directory=directory, num_up=1) as fleet:
            running = fleet.generate(request(max_tokens=10_000))
            await anext(running)
            directory.set_members([new])
            await until(lambda: _states(fleet) == ["superseded", "up"])
            assert await tokens_of(fleet.generate(request())) == answer()
            assert len(new_worker.submits) == 1
            await anext(running)
            assert running.num_replays == 0
            await running.aclose()
            await until(lambda: _states(fleet) == ["up"])


async def test_another_process_on_the_old_port_is_not_taken_for_the_worker() -> None:
    async with stub("d0", incarnation="a") as (_, member):
        stale = replace(member, incarnation="older")
        async with fleet_of(directory=StaticDirectory([stale]), num_up=0) as fleet:
            await until(lambda: "answers as incarnation a" in fleet.workers()[0].detail)
            assert not fleet.ready


async def test_a_refusal_in_mid_replay_is_waited_out() -> None:
    async with stub("d0") as (w0, m0), stub("d1") as (w1, m1), fleet_of(m0, m1) as fleet:
        generation = fleet.generate(request(max_tokens=40))
        stream = asyncio.create_task(tokens_of(generation))
        await until(lambda: generation.num_received > 5)
        workers = {"d0": w0, "d1": w1}
        lost = workers.pop(generation.worker_id)
        (other,) = workers.values()
        other.refusals = [UnavailableError("not now")]
        await lost.close()
        assert await asyncio.wait_for(stream, 5) == answer(max_tokens=40)
        assert generation.num_replays == 2


async def test_a_worker_without_the_adapter_is_not_the_only_one() -> None:
    async with stub("d0") as (w0, m0), stub("d1") as (w1, m1), fleet_of(m0, m1) as fleet:
        generation = fleet.generate(replace(request(max_tokens=4), adapter_id="a" * 32))
        workers = {"d0": w0, "d1": w1}
        workers[generation.worker_id].refusals = [AdapterNotFoundError("not loaded here")]
        assert await asyncio.wait_for(tokens_of(generation), 5) == answer(max_tokens=4)
        assert generation.num_replays == 1


async def test_replays_are_bounded() -> None:
    async with stub("d0") as (worker, member), fleet_of(member) as fleet:
        worker.refusals = [UnavailableError("no")] * 10
        with pytest.raises(UnavailableError):
            await tokens_of(fleet.generate(request()))
        assert len(worker.submits) == 1 + FAST.max_replays


async def test_all_tokens_but_no_word_of_the_end() -> None:
    async with stub("d0") as (worker, member), fleet_of(member) as fleet:
        worker.withholds_done = True
        generation = fleet.generate(request(max_tokens=3))
        await until(lambda: generation.num_received == 3)
        await worker.close()
        chunks = [chunk async for chunk in generation]
        assert [t for chunk in chunks for t in chunk.token_ids] == answer(max_tokens=3)
        assert chunks[-1].finish_reason is FinishReason.LENGTH


def _states(fleet: Fleet) -> list[str]:
    return sorted(str(view.state) for view in fleet.workers())
