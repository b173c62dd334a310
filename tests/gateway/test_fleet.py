"""Fleet against stub workers on real sockets in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.stub_worker import stub_logprob
from tests.gateway.fleet_fixtures import (
    FAST,
    answer,
    fleet_of,
    request,
    stub,
    tokens_of,
    until,
)

from baton.cluster.commands.replay import replay
from baton.gateway.fleet import FleetConfig, StaticDirectory
from baton.protos.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
)
from baton.protos.hashing import block_hashes, short_hash
from baton.protos.types import FinishReason, KvDigest, KvEvents, Member, Role, WorkerLoad
from baton.router.config import RouterConfig
from baton.router.times import H100_8B, ModelTimes


async def test_stream_to_the_end() -> None:
    async with stub() as (worker, member), fleet_of(member) as fleet:
        generation = fleet.generate(request(max_tokens=7))
        chunks = [chunk async for chunk in generation]
        assert [t for chunk in chunks for t in chunk.token_ids] == answer(max_tokens=7)
        assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1].finish_reason is FinishReason.LENGTH
        assert chunks[-1].done is not None
        assert generation.worker_id == "d0"
        assert generation.plan.header().startswith("decode=d0 prefill=local reason=")
        assert worker.aborts == []
        assert fleet.model.block_size == 16


async def test_256_streams_share_one_link() -> None:
    async with stub() as (worker, member), fleet_of(member) as fleet:
        prompts = [(i, i + 1) for i in range(256)]
        generations = [fleet.generate(request(p, max_tokens=10)) for p in prompts]
        got = await asyncio.gather(*map(tokens_of, generations))
        assert got == [answer(p, 10) for p in prompts]
        assert worker.num_running == 0


async def test_a_slow_consumer_gets_one_large_chunk() -> None:
    async with stub(period_s=0.002) as (_, member), fleet_of(member) as fleet:
        generation = fleet.generate(request(max_tokens=30))
        await until(lambda: generation.num_received == 30)
        chunks = [chunk async for chunk in generation]
        assert [chunk.token_ids for chunk in chunks] == [answer(max_tokens=30)]
        assert chunks[0].finish_reason is FinishReason.LENGTH


async def test_logprobs_stay_aligned_with_tokens() -> None:
    async with stub() as (_, member), fleet_of(member) as fleet:
        generation = fleet.generate(request(max_tokens=6, logprobs=0, prompt_logprobs=0))
        chunks = [chunk async for chunk in generation]
        assert chunks[0].prompt_logprobs == [None, stub_logprob(2), stub_logprob(3)]
        for chunk in chunks:
            assert chunk.logprobs == [stub_logprob(t) for t in chunk.token_ids]
            assert chunk is chunks[0] or chunk.prompt_logprobs is None


async def test_aclose_aborts_once() -> None:
    async with stub() as (worker, member), fleet_of(member) as fleet:
        generation = fleet.generate(request(max_tokens=10_000))
        await anext(generation)
        await generation.aclose()
        await generation.aclose()
        await until(lambda: worker.num_running == 0)
        assert len(worker.aborts) == 1
        with pytest.raises(StopAsyncIteration):
            await anext(generation)


async def test_close_before_the_first_token() -> None:
    async with stub(period_s=0.2) as (worker, member), fleet_of(member) as fleet:
        generation = fleet.generate(request())
        task = asyncio.create_task(tokens_of(generation))
        await until(lambda: worker.num_running == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await generation.aclose()
        await until(lambda: worker.num_running == 0)


async def test_deadline_aborts() -> None:
    async with stub() as (worker, member), fleet_of(member) as fleet:
        generation = fleet.generate(request(max_tokens=10_000), timeout_s=0.1)
        with pytest.raises(DeadlineError, match=r"did not finish within 0.1 s"):
            await tokens_of(generation)
        await until(lambda: worker.num_running == 0)
        assert 0 < worker.submits[0].deadline_s <= 0.1


async def test_a_refusal_goes_to_the_other_worker() -> None:
    async with stub("d0") as (w0, m0), stub("d1") as (w1, m1), fleet_of(m0, m1) as fleet:
        for worker in (w0, w1):
            worker.refusals = [OverloadedError("full")]
        # Whichever is first refuses once, and then has room again: one of the two must serve it.
        w1.refusals = []
        assert await tokens_of(fleet.generate(request())) == answer()
        w0.refusals, w1.refusals = [OverloadedError("full")], [OverloadedError("full")]
        with pytest.raises(OverloadedError):
            await tokens_of(fleet.generate(request()))


async def test_errors_of_the_request_are_not_retried() -> None:
    async with stub() as (worker, member), fleet_of(member) as fleet:
        worker.refusals = [InvalidRequestError("top_k is -1", param="top_k")]
        with pytest.raises(InvalidRequestError, match="top_k"):
            await tokens_of(fleet.generate(request()))
        assert len(worker.submits) == 1


async def test_a_session_goes_on_where_it_was_served_last() -> None:
    async with stub("d0") as (_, m0), stub("d1") as (_, m1), fleet_of(m0, m1) as fleet:
        homes: dict[str, str | None] = {}
        for name in ("a", "b", "c") * 3:
            # All else must be equal: nothing runs, and the workers have said so.
            await until(lambda: not any(view.pending_requests for view in fleet.workers()))
            chosen = fleet.generate(replace(request(max_tokens=2), session=name))
            assert chosen.worker_id == homes.setdefault(name, chosen.worker_id)
            await tokens_of(chosen)


async def test_children_stick_to_the_worker_of_the_first() -> None:
    async with stub("d0") as (_, m0), stub("d1") as (_, m1), fleet_of(m0, m1) as fleet:
        first = fleet.generate(request(max_tokens=10_000))
        await anext(first)
        for _ in range(6):
            child = fleet.generate(request(max_tokens=2), stick_to=first.worker_id)
            assert child.worker_id == first.worker_id
            assert child.plan.reason == "stick_to"
            assert await tokens_of(child) == answer(max_tokens=2)
        await first.aclose()
        orphan = fleet.generate(request(), stick_to="gone")
        assert await tokens_of(orphan) == answer()


async def test_draining_workers_get_nothing_new() -> None:
    async with stub("d0") as (w0, m0), stub("d1") as (w1, m1), fleet_of(m0, m1) as fleet:
        w0.draining = True
        w0.report()
        await until(lambda: any(view.load.draining for view in fleet.workers()))
        for _ in range(4):
            assert await tokens_of(fleet.generate(request(max_tokens=2))) == answer(max_tokens=2)
        assert (len(w0.submits), len(w1.submits)) == (0, 4)


async def test_a_request_waits_for_the_first_worker() -> None:
    directory = StaticDirectory([])
    async with stub() as (_, member), fleet_of(directory=directory, num_up=0) as fleet:
        assert not fleet.ready
        generation = fleet.generate(request())
        assert fleet.statistics().num_waiting == 1
        with pytest.raises(UnavailableError, match="waits for a decode worker"):
            _ = generation.plan
        directory.set_members([member])
        assert await tokens_of(generation) == answer()
        await fleet.wait_ready(1.0)


async def test_a_request_does_not_wait_for_ever() -> None:
    config = FleetConfig(no_worker_wait_s=0.1)
    async with fleet_of(config=config, num_up=0) as fleet:
        with pytest.raises(UnavailableError, match=r"within 0.1 s"):
            await tokens_of(fleet.generate(request()))
        with pytest.raises(UnavailableError, match="known: none"):
            await fleet.wait_ready(0.05)


async def test_generations_are_bounded() -> None:
    config = FleetConfig(max_generations=1)
    async with stub() as (_, member), fleet_of(member, config=config) as fleet:
        generation = fleet.generate(request())
        with pytest.raises(OverloadedError):
            fleet.generate(request())
        await generation.aclose()


async def test_another_model_is_refused_and_shown() -> None:
    directory = StaticDirectory([])
    async with (
        stub("d0") as (_, m0),
        stub("d1", model_digest="other") as (w1, m1),
        fleet_of(directory=directory, num_up=0) as fleet,
    ):
        directory.set_members([m0])
        await fleet.wait_ready(5)
        directory.set_members([m0, m1])
        await until(lambda: "refused" in [view.state for view in fleet.workers()])
        refused = next(view for view in fleet.workers() if view.state == "refused")
        assert refused.detail == "its model_digest is 'other', but this fleet's is 'stub'"
        assert await tokens_of(fleet.generate(request())) == answer()
        assert w1.submits == []


async def test_a_broken_directory_costs_nothing() -> None:
    class Flaky(StaticDirectory):
        broken = False

        async def members(self) -> Sequence[Member]:
            if self.broken:
                raise ConnectionError("no directory")
            return await super().members()

    async with stub() as (_, member):
        directory = Flaky([member])
        async with fleet_of(directory=directory, num_up=1) as fleet:
            directory.broken = True
            await asyncio.sleep(3 * FAST.poll_s)
            assert await tokens_of(fleet.generate(request())) == answer()
            directory.broken = False
            directory.set_members([])
            await asyncio.sleep(3 * FAST.poll_s)
            # A directory that forgot everything takes no live worker from us.
            assert await tokens_of(fleet.generate(request())) == answer()


async def test_cached_blocks_are_planned_for_and_a_gap_is_resynchronised() -> None:
    prompt = tuple(range(160))
    hashes = block_hashes(prompt, 16)
    async with stub() as (worker, member), fleet_of(member) as fleet:

        async def cached() -> int:
            generation = fleet.generate(request(prompt, max_tokens=1))
            await tokens_of(generation)
            return generation.plan.num_cached_tokens

        assert await cached() == 0
        worker.store(hashes[:4])
        await asyncio.sleep(0.05)
        assert await cached() == 64
        running = fleet.generate(request(max_tokens=10_000))
        await anext(running)
        worker.lose(hashes[4:6])
        worker.store(hashes[6:])
        await until(lambda: len(fleet.workers()) == 2)
        await until(lambda: "up" in [view.state for view in fleet.workers()])
        await asyncio.sleep(0.05)
        assert await cached() == 160
        # The link that lost events still carries what ran on it.
        await anext(running)
        await running.aclose()
        await until(lambda: len(fleet.workers()) == 1)
        assert running.num_replays == 0


async def test_prefill_workers_are_named_best_first() -> None:
    async with (
        stub("d0") as (worker, m0),
        stub("p0", role=Role.PREFILL) as (_, p0),
        stub("p1", role=Role.PREFILL) as (_, p1),
        fleet_of(m0, p0, p1) as fleet,
    ):
        prompt = tuple(range(100))
        first = fleet.generate(request(prompt, max_tokens=3))
        second = fleet.generate(request(prompt, max_tokens=3))
        assert await tokens_of(first) == await tokens_of(second) == answer(prompt, 3)
        # The second sees the first in flight and takes the other prefill worker.
        targets = [[t.worker_id for t in submit.prefill] for submit in worker.submits]
        assert [len(names) for names in targets] == [2, 2]
        assert {names[0] for names in targets} == {"p0", "p1"}
        assert worker.submits[0].prefill[0].address in (p0.address, p1.address)


async def test_workers_with_unlike_blocks_are_planned_for_by_what_each_holds(
    tmp_path: Path,
) -> None:
    prompt = tuple(range(200))
    log = tmp_path / "decisions.jsonl"
    config = replace(FAST, decision_log=str(log))
    router = RouterConfig(policy="always_remote")
    async with (
        stub("d0", block_size=16) as (decode, m0),
        stub("p0", role=Role.PREFILL, block_size=24) as (prefill, p0),
        stub("p1", role=Role.PREFILL, block_size=16) as (_, p1),
        stub("d1", block_size=24) as (_, m1),
    ):
        directory = StaticDirectory([m0, p0, p1])
        async with fleet_of(directory=directory, config=config, router=router, num_up=3) as fleet:
            # Decode workers replace each other: their pools are counted in blocks of one size.
            directory.set_members([m0, p0, p1, m1])
            await until(lambda: [v.state for v in fleet.workers()].count("refused") == 1)
            (refused,) = [view for view in fleet.workers() if view.state == "refused"]
            assert refused.detail == "its block_size is 24, but this fleet's is 16"
            assert fleet.model.block_sizes == (16, 24)
            decode.store(block_hashes(prompt, 16)[:3])
            prefill.store(block_hashes(prompt, 24)[:7])
            await asyncio.sleep(0.05)
            generation = fleet.generate(request(prompt, max_tokens=2))
            await tokens_of(generation)
            plan = generation.plan
            assert plan.prefill[0].worker_id == "p0"
            assert (plan.num_cached_tokens, plan.num_new_tokens) == (48, 200 - 168)
            (told,) = fleet.planner.explain("r")
            assert told["num_cached_tokens"] == 48
    found = replay(log, None, 5)
    assert (found.num_decisions, found.num_same) == (1, 1)


async def test_only_prefill_workers_is_not_ready() -> None:
    async with stub("p0", role=Role.PREFILL) as (_, member), fleet_of(member) as fleet:
        assert not fleet.ready


async def test_decisions_are_explained_logged_and_can_be_made_again(tmp_path: Path) -> None:
    log = tmp_path / "log" / "decisions.jsonl"
    config = replace(FAST, decision_log=str(log), explained_requests=2)
    async with stub() as (_, member), fleet_of(member, config=config) as fleet:
        for name in ("a-0", "b-0", "c-0"):
            asked = replace(request(max_tokens=3), request_id=name)
            await tokens_of(fleet.generate(asked))
        assert fleet.planner.explain("a") == []
        (plan,) = fleet.planner.explain("c")
        assert plan["request_id"] == "c-0"
        assert plan["decode"] == "d0"
        assert plan["reason"] == "no_prefill_worker"
        assert plan["candidates"][0]["ttft_s"] == plan["ttft_s"]
        assert plan["outcome"]["num_tokens"] == 3
        assert plan["outcome"]["ttft_s"] > 0
    found = replay(log, None, 5)
    assert (found.num_decisions, found.num_same) == (3, 3)


async def test_learned_times_are_saved_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    config = replace(FAST, model_times=str(path))
    async with stub() as (_, member), fleet_of(member, config=config) as fleet:
        await tokens_of(fleet.generate(request(max_tokens=3)))
        learned = fleet.planner.models.export()
    assert ModelTimes.from_json(path.read_text()) == learned
    path.write_text("{}")
    async with stub() as (_, member), fleet_of(member, config=config) as fleet:
        assert fleet.planner.models.export().prefill_pool == H100_8B.prefill_pool


async def test_a_cache_that_is_not_what_its_events_said_is_noticed_and_learned_anew() -> None:
    hashes = block_hashes(range(32), 16)
    async with stub() as (worker, member), fleet_of(member) as fleet:
        worker.cached = list(hashes)
        worker.hub.broadcast(None, KvEvents(stored=tuple(hashes)))
        right = KvDigest(2, short_hash(hashes[0]) ^ short_hash(hashes[1]))
        worker.hub.broadcast(WorkerLoad(kv_digest=right), KvEvents())
        await until(lambda: fleet.workers()[0].load.kv_digest == right)
        assert not fleet.workers()[0].kv_blind
        # As if an event had been lost on the way.
        worker.hub.broadcast(WorkerLoad(kv_digest=KvDigest(3, 17)), KvEvents())
        await until(lambda: fleet.workers()[0].kv_blind)
        generation = fleet.generate(request(max_tokens=1))
        await tokens_of(generation)
        assert generation.plan.reason.endswith(",kv_blind")
        figures = {
            f.labels: f.value for f in fleet.planner.audit.figures(fleet.workers()) if f.value
        }
        assert figures == {(("worker", "d0"), ("kind", "divergence")): 1}
        await until(lambda: not fleet.workers()[0].kv_blind)
        plan = fleet.generate(request(tuple(range(32)), max_tokens=1))
        await tokens_of(plan)
        assert plan.plan.num_cached_tokens == 32
