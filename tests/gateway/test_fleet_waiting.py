"""Late binding against stub workers: who waits in the gateway, who goes, who is refused."""

from __future__ import annotations

import asyncio

import pytest
from tests.gateway.fleet_fixtures import (
    FAST,
    answer,
    fleet_of,
    request,
    stub,
    tokens_of,
    until,
)

from baton.gateway.fleet import Fleet, FleetConfig, Generation, StaticDirectory
from baton.protos.errors import DeadlineError, OverloadedError, UnavailableError
from baton.protos.types import WorkerLoad
from baton.router.admission import Refusal
from baton.router.admission_config import AdmissionConfig, TenantLimits

# More prompt tokens wait at such a worker than it computes in `hold_s`.
BUSY = WorkerLoad(queued_prefill_tokens=50_000, prefill_tokens_per_s=10_000.0)
FREE = WorkerLoad(prefill_tokens_per_s=10_000.0)
# The stub says nothing of requests that it has just been given: let reports not settle them away.
CONFIG = FleetConfig(poll_s=0.05, no_worker_wait_s=2.0, settle_s=0.0)


def waiting(fleet: Fleet) -> int:
    return fleet.statistics().num_waiting


async def test_a_request_waits_for_a_worker_that_can_begin_it_and_goes_where_room_is_first() -> (
    None
):
    async with (
        stub("d0") as (w0, m0),
        stub("d1") as (w1, m1),
        fleet_of(m0, m1, config=CONFIG) as fleet,
    ):
        for worker in (w0, w1):
            worker.load = BUSY
            worker.report()
        await until(lambda: all(v.load.queued_prefill_tokens for v in fleet.workers()))
        generation = fleet.generate(request())
        await asyncio.sleep(0.05)
        assert (waiting(fleet), len(w0.submits), len(w1.submits)) == (1, 0, 0)
        w1.load = FREE
        w1.report()
        assert await tokens_of(generation) == answer()
        assert (generation.worker_id, len(w0.submits)) == ("d1", 0)
        (tenant,) = fleet.tenants()
        assert (tenant.num_started, tenant.num_waiting) == (1, 0)
        assert tenant.wait_s >= 0.05


async def test_a_decode_worker_without_blocks_is_not_given_more() -> None:
    async with stub() as (worker, member), fleet_of(member, config=CONFIG) as fleet:
        worker.load = WorkerLoad(total_blocks=100, free_blocks=10, num_waiting=1)
        worker.report()
        await until(lambda: fleet.workers()[0].load.total_blocks == 100)
        long = fleet.generate(request(range(16 * 20)))
        await asyncio.sleep(0.03)
        assert waiting(fleet) == 1
        worker.load = WorkerLoad(total_blocks=100, free_blocks=50, num_waiting=1)
        worker.report()
        assert await tokens_of(long) == answer(range(16 * 20))


async def test_whatever_ends_a_waiting_request_frees_its_place() -> None:
    async with stub() as (worker, member), fleet_of(member, config=CONFIG) as fleet:
        worker.load = BUSY
        worker.report()
        await until(lambda: bool(fleet.workers()[0].load.queued_prefill_tokens))
        left, late = fleet.generate(request()), fleet.generate(request(), timeout_s=0.05)
        assert waiting(fleet) == 2
        await left.aclose()
        assert waiting(fleet) == 1
        with pytest.raises((DeadlineError, OverloadedError)):
            await tokens_of(late)
        assert waiting(fleet) == 0
        assert worker.submits == []
        (tenant,) = fleet.tenants()
        assert (tenant.num_running, tenant.num_started) == (0, 0)
        last = fleet.generate(request())
        await fleet.close()
        with pytest.raises(UnavailableError, match="shutting down"):
            await tokens_of(last)


async def test_a_request_that_waited_too_long_is_told_when_to_come_back() -> None:
    admission = AdmissionConfig(max_wait_s=0.1)
    async with stub() as (worker, member):
        fleets = fleet_of(member, config=CONFIG, admission=admission)
        async with fleets as fleet:
            worker.load = BUSY
            worker.report()
            await until(lambda: bool(fleet.workers()[0].load.queued_prefill_tokens))
            with pytest.raises(OverloadedError, match=r"no worker could begin") as caught:
                await tokens_of(fleet.generate(request()))
            assert caught.value.code == Refusal.TOO_LATE
            assert caught.value.retry_after_s >= 1.0


async def test_a_first_token_that_would_come_too_late_is_refused_at_once() -> None:
    async with stub() as (worker, member), fleet_of(member, config=CONFIG) as fleet:
        worker.load = BUSY
        worker.report()
        await until(lambda: bool(fleet.workers()[0].load.queued_prefill_tokens))
        # Five seconds of work wait there.
        with pytest.raises(OverloadedError, match="after its deadline") as caught:
            await tokens_of(fleet.generate(request(), ttft_s=1.0))
        assert 1.0 <= caught.value.retry_after_s < 10.0
        (tenant,) = fleet.tenants()
        assert tenant.refused == {Refusal.TOO_LATE: 1}
        worker.load = FREE
        worker.report()
        await until(lambda: not fleet.workers()[0].load.queued_prefill_tokens)
        assert await tokens_of(fleet.generate(request(), ttft_s=1.0)) == answer()


async def test_a_tenant_that_floods_leaves_the_next_turn_to_others() -> None:
    tenants = [TenantLimits(name="flood"), TenantLimits(name="quiet")]
    async with (
        stub() as (worker, member),
        fleet_of(member, config=CONFIG, tenants=tenants) as fleet,
    ):
        worker.load = BUSY
        worker.report()
        await until(lambda: bool(fleet.workers()[0].load.queued_prefill_tokens))
        floods = [fleet.generate(request((9, i)), tenant="flood") for i in range(50)]
        quiet = fleet.generate(request((1, 2)), tenant="quiet")
        assert waiting(fleet) == 51
        worker.load = FREE
        worker.report()
        await asyncio.gather(*map(tokens_of, [*floods, quiet]))
        order = [tuple(s.generate.prompt_token_ids) for s in worker.submits]
        assert order.index((1, 2)) <= 1


async def test_running_limits_hold_and_siblings_count_without_waiting() -> None:
    tenants = [TenantLimits(name="a", max_running=2)]
    async with stub() as (worker, member), fleet_of(member, tenants=tenants) as fleet:
        first = fleet.generate(request(), tenant="a")
        await until(lambda: first.num_received > 0)
        sibling = fleet.generate(request(), tenant="a", stick_to="d0")
        third = fleet.generate(request(), tenant="a")
        (tenant,) = fleet.tenants()
        assert (tenant.num_running, tenant.num_waiting) == (2, 1)
        got = await asyncio.gather(*map(tokens_of, (first, sibling, third)))
        assert got == [answer()] * 3
        assert len(worker.submits) == 3


async def test_requests_wait_for_a_pool_that_was_scaled_to_zero() -> None:
    config = FleetConfig(poll_s=0.05, no_worker_wait_s=0.1, wake_wait_s=30.0)
    directory = StaticDirectory([])
    async with fleet_of(directory=directory, config=config, num_up=0) as fleet:
        held = [fleet.generate(request()) for _ in range(3)]
        await asyncio.sleep(0.3)
        assert waiting(fleet) == 3
        async with stub() as (_, member):
            directory.set_members([member])
            assert await asyncio.gather(*map(tokens_of, held)) == [answer()] * 3
            directory.set_members([])


async def test_a_burst_is_spread_although_reports_come_late() -> None:
    """What was sent since the last report counts, so that a burst does not pile up anywhere."""
    async with (
        stub("d0") as (w0, m0),
        stub("d1") as (w1, m1),
        fleet_of(m0, m1, config=FAST) as fleet,
    ):
        for worker in (w0, w1):
            worker.load = WorkerLoad(prefill_tokens_per_s=1000.0)
            worker.report()
        await until(lambda: all(v.load.prefill_tokens_per_s for v in fleet.workers()))
        burst: list[Generation] = [fleet.generate(request(range(100))) for _ in range(20)]
        assert max(len(w0.submits), len(w1.submits)) <= 4
        await asyncio.gather(*map(tokens_of, burst))
        assert len(w0.submits) + len(w1.submits) == 20
