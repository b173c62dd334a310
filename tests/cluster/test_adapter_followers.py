"""Workers and gateways that follow a board, and an operator's requests to it, without Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from baton.cluster.adapter_board import AdapterBoard
from baton.cluster.adapter_control import check_allowed
from baton.cluster.adapter_followers import GatewayAdapters, WorkerAdapters
from baton.cluster.adapter_orders import (
    AdapterOrders,
    Change,
    GatewayReport,
    LoadFailure,
    WorkerReport,
)
from baton.gateway.adapters import AdapterTable
from baton.protos.adapters import AdapterRef
from baton.protos.errors import (
    AdapterError,
    InvalidRequestError,
    PermissionError_,
    UnavailableError,
)

POLL_S = 0.02


def ref(name: str, content: str) -> AdapterRef:
    return AdapterRef(name=name, adapter_id=content, path=f"/adapters/{content}", rank=4)


class Client:
    """A board in this process; answers at once, and not at all while it is `away`."""

    def __init__(self) -> None:
        self.board = AdapterBoard(0.5)
        self.away = False

    def _here(self) -> AdapterBoard:
        if self.away:
            raise UnavailableError("the directory is away")
        return self.board

    async def work_adapters(self, report: WorkerReport, hold_s: float) -> AdapterOrders | None:
        board = self._here()
        board.work(report)
        await asyncio.sleep(min(hold_s, POLL_S))
        return None if board.mark == report.mark else board.orders()

    async def serve_adapters(self, report: GatewayReport, hold_s: float) -> AdapterOrders | None:
        board = self._here()
        board.serve(report)
        await asyncio.sleep(min(hold_s, POLL_S))
        return None if board.mark == report.mark else board.orders()

    async def done(self, number: int) -> Change:
        async with asyncio.timeout(20):
            while not self.board.change(number).done:
                await asyncio.sleep(POLL_S)
        return self.board.change(number)


@dataclass
class Host:
    """Loads anything but `broken`, each after `gate`."""

    broken: str = ""
    held: set[str] = field(default_factory=set)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def load_adapter(self, ref: AdapterRef) -> None:
        await self.gate.wait()
        if ref.adapter_id == self.broken:
            raise AdapterError("tensor x has another shape", param="x")
        self.held.add(ref.adapter_id)

    async def unload_adapter(self, adapter_id: str) -> None:
        self.held.remove(adapter_id)


@contextlib.asynccontextmanager
async def following(client: Client, host: Host, name: str) -> AsyncIterator[WorkerAdapters]:
    worker = WorkerAdapters(client, host, worker_id=name, incarnation=name, poll_s=POLL_S)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.close()


@contextlib.asynccontextmanager
async def serving(client: Client) -> AsyncIterator[AdapterTable]:
    table = AdapterTable()
    gateway = GatewayAdapters(client, table, incarnation="g", poll_s=POLL_S)
    await gateway.start()
    try:
        yield table
    finally:
        await gateway.close()


def propose(client: Client, name: str, content: str) -> int:
    return client.board.propose(ref(name, content), force=True, timeout_s=20.0)


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(POLL_S)


async def test_load_and_unload_reach_everybody() -> None:
    client, one, two = Client(), Host(), Host()
    workers = following(client, one, "one"), following(client, two, "two")
    async with workers[0], workers[1], serving(client) as table:
        change = await client.done(propose(client, "sql", "a"))
        assert change.failure is None
        assert one.held == two.held == {"a"}
        with table.using("sql"):
            await client.done(client.board.remove("sql"))
            assert table.adapters == {}
            assert one.held == {"a"}
        await until(lambda: not one.held and not two.held)


async def test_what_one_worker_refuses_no_worker_keeps() -> None:
    client, one, two = Client(), Host(), Host(broken="a")
    async with following(client, one, "one"), following(client, two, "two"):
        change = await client.done(propose(client, "sql", "a"))
        assert change.failure == LoadFailure(
            worker_id="two",
            adapter_id="a",
            code="invalid_adapter",
            message="tensor x has another shape",
            param="x",
        )
        await until(lambda: not one.held)


async def test_a_worker_starts_with_what_it_can_load_of_the_set() -> None:
    client, one, late = Client(), Host(), Host(broken="b")
    async with following(client, one, "one"):
        await client.done(propose(client, "sql", "a"))
        await client.done(propose(client, "json", "b"))
        async with following(client, late, "late") as worker:
            assert late.held == {"a"}
            assert [f.adapter_id for f in worker.failures] == ["b"]


async def test_a_worker_that_loads_for_long_is_waited_for() -> None:
    client, slow = Client(), Host()
    async with following(client, slow, "slow"), serving(client) as table:
        await client.done(propose(client, "sql", "a"))
        slow.gate.clear()
        number = propose(client, "json", "b")
        # Longer than a lease: it goes on saying that it lives.
        await asyncio.sleep(0.8)
        assert client.board.change(number).generation is None
        slow.gate.set()
        assert (await client.done(number)).failure is None
        assert set(table.adapters) == {"sql", "json"}


async def test_a_directory_that_is_away_changes_nothing() -> None:
    client, one = Client(), Host()
    async with following(client, one, "one"), serving(client) as table:
        await client.done(propose(client, "sql", "a"))
        client.away = True
        await asyncio.sleep(5 * POLL_S)
        assert one.held == {"a"}
        assert set(table.adapters) == {"sql"}
        client.away = False
        await client.done(propose(client, "json", "b"))
        assert one.held == {"a", "b"}


def test_adapters_come_from_the_roots_alone(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "good", root / "linked", outside):
        folder.mkdir(parents=True)
    (outside / "secret").write_text("")
    (root / "linked" / "adapter_config.json").symlink_to(outside / "secret")
    (root / "away").symlink_to(outside)
    (tmp_path / "way-in").symlink_to(root)
    roots = [str(root)]
    check_allowed(str(root / "good"), roots)
    check_allowed(str(tmp_path / "way-in" / "good"), roots)
    check_allowed(str(root / "missing"), roots)
    for path in (outside, root / "away", root / "linked", root / "good/../../outside", "/nowhere"):
        with pytest.raises(PermissionError_, match="outside") as refused:
            check_allowed(str(path), roots)
        assert refused.value.param == "lora_path"
    for path in ("good", "./good", ""):
        with pytest.raises(InvalidRequestError, match="absolute"):
            check_allowed(path, roots)
    with pytest.raises(InvalidRequestError, match="cannot be followed"):
        check_allowed("/a\0b", roots)
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises((InvalidRequestError, PermissionError_)):
        check_allowed(str(root / "loop"), roots)
    with pytest.raises(PermissionError_, match="--lora-roots"):
        check_allowed(str(root / "good"), [])
