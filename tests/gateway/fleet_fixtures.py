"""Stub workers on real sockets, in this process or their own; a fleet that must end clean."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from benchmarks.stub_worker import StubConfig, StubWorker, stub_token

from baton.gateway.fleet import Fleet, FleetConfig, Generation, StaticDirectory
from baton.protos.types import GenerateRequest, Member, Role, SamplingParams
from baton.router.admission_config import AdmissionConfig, TenantLimits
from baton.router.config import RouterConfig

ROOT = Path(__file__).parents[2]
FAST = FleetConfig(poll_s=0.05, no_worker_wait_s=2.0, reconnect_min_s=0.02, reconnect_max_s=0.2)


def request(
    prompt: Sequence[int] = (1, 2, 3), max_tokens: int = 20, **sampling: object
) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens, **sampling)  # type: ignore[arg-type]
    return GenerateRequest(request_id="r", prompt_token_ids=tuple(prompt), sampling=params)


def answer(prompt: Sequence[int] = (1, 2, 3), max_tokens: int = 20) -> list[int]:
    return [stub_token(prompt, position) for position in range(max_tokens)]


async def tokens_of(generation: Generation) -> list[int]:
    return [token_id async for chunk in generation for token_id in chunk.token_ids]


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def stub(worker_id: str = "d0", **config: object) -> AsyncIterator[tuple[StubWorker, Member]]:
    worker = StubWorker(StubConfig(worker_id=worker_id, **config))  # type: ignore[arg-type]
    member = await worker.start()
    try:
        yield worker, member
    finally:
        await worker.close()


@contextlib.asynccontextmanager
async def fleet_of(
    *members: Member,
    directory: StaticDirectory | None = None,
    config: FleetConfig = FAST,
    router: RouterConfig | None = None,
    num_up: int | None = None,
    admission: AdmissionConfig | None = None,
    tenants: Sequence[TenantLimits] = (),
) -> AsyncIterator[Fleet]:
    """A started fleet; on exit nothing may be left in it, nor any task of its making."""
    fleet = Fleet(
        directory or StaticDirectory(members),
        router or RouterConfig(),
        gateway_id="g0",
        config=config,
        admission=admission,
        tenants=tenants,
    )
    await fleet.start()
    try:
        expected = len(members) if num_up is None else num_up
        await until(lambda: sum(view.state == "up" for view in fleet.workers()) == expected)
        yield fleet
        fleet.check_integrity()
        statistics = fleet.statistics()
        assert (statistics.num_generations, statistics.num_parked) == (0, 0)
        assert statistics.num_waiting == 0
        assert all(tenant.num_running == 0 for tenant in fleet.tenants())
        assert all(view.in_flight_tokens == 0 for view in fleet.workers())
    finally:
        await fleet.close()
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not [name for name in names if name.startswith(("link-", "fleet-"))]


class StubProcess:
    """A stub worker in a process of its own, to be killed or stopped."""

    def __init__(self, process: asyncio.subprocess.Process, member: Member) -> None:
        self.process = process
        self.member = member

    def kill(self) -> None:
        self.process.kill()

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)


@contextlib.asynccontextmanager
async def stub_process(worker_id: str, period_ms: float = 10.0) -> AsyncIterator[StubProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "benchmarks" / "stub_worker.py"),
        f"--worker-id={worker_id}",
        f"--period-ms={period_ms}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            facts = json.loads(await process.stdout.readline())
        yield StubProcess(process, Member(**{**facts, "role": Role(facts["role"])}))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
