from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from baton.cluster.config import DirectoryConfig
from baton.cluster.directory import (
    MAX_FAILURES,
    GatewayMember,
    Listing,
    MemberTable,
    MemberView,
    StartFailure,
)
from baton.cluster.membership import DirectoryReader, Membership
from baton.protos.clock import ManualClock
from baton.protos.errors import OverloadedError, UnavailableError
from baton.protos.types import Member, Role

LEASE_S = 5.0


def worker(name: str, incarnation: str = "one", address: str = "host:1") -> Member:
    return Member(
        worker_id=name,
        incarnation=f"{name}-{incarnation}",
        role=Role.DECODE,
        address=address,
        model="m",
    )


def gateway(name: str) -> GatewayMember:
    return GatewayMember(
        gateway_id=name, incarnation=f"{name}-one", http_url="http://h:1", grpc_address=""
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def table(clock: ManualClock) -> MemberTable:
    return MemberTable(LEASE_S, 4, clock)


def test_a_lease_ends_without_heartbeats(table: MemberTable, clock: ManualClock) -> None:
    table.heartbeat(worker("a"))
    table.heartbeat(gateway("g"))
    clock.advance(LEASE_S - 0.1)
    table.heartbeat(worker("a"))
    clock.advance(0.2)
    listing = table.listing()
    assert [m.worker_id for m in listing.workers] == ["a"]
    assert listing.gateways == ()


def test_versions_change_only_with_the_list(table: MemberTable, clock: ManualClock) -> None:
    table.heartbeat(worker("a"))
    first = table.listing().version
    clock.advance(1.0)
    table.heartbeat(worker("a"))
    assert table.listing().version == first
    table.heartbeat(worker("a", address="host:2"))
    assert table.listing().version > first


def test_a_new_incarnation_replaces_the_old_for_good(table: MemberTable) -> None:
    table.heartbeat(worker("a", "one"))
    table.heartbeat(worker("a", "two"))
    table.heartbeat(worker("a", "one"))
    assert [m.incarnation for m in table.listing().workers] == ["a-two"]


def test_whoever_left_stays_out(table: MemberTable) -> None:
    table.heartbeat(worker("a"))
    table.leave("a-one")
    # A heartbeat that was on its way.
    table.heartbeat(worker("a"))
    assert table.listing().workers == ()
    table.leave("never-seen")


def test_the_table_is_bounded(table: MemberTable) -> None:
    for i in range(4):
        table.heartbeat(worker(f"w{i}"))
    with pytest.raises(OverloadedError, match="max_members"):
        table.heartbeat(worker("w4"))
    table.heartbeat(worker("w3"))
    for i in range(MAX_FAILURES + 5):
        table.report_failure(StartFailure(replica_id=str(i), code="c", message="m"))
    assert len(table.listing().failures) == MAX_FAILURES
    assert table.listing().failures[-1].replica_id == str(MAX_FAILURES + 4)


def test_a_view_survives_the_directorys_restart(clock: ManualClock) -> None:
    before = MemberTable(LEASE_S, 4, clock)
    view = MemberView(LEASE_S, clock)
    assert view.age_s is None
    for name in ("a", "b"):
        before.heartbeat(worker(name))
    clock.advance(LEASE_S)
    for name in ("a", "b"):
        before.heartbeat(worker(name))
    view.update(before.listing())
    assert {m.worker_id for m in view.workers} == {"a", "b"}

    after = MemberTable(LEASE_S, 4, clock)
    assert after.listing().epoch != before.listing().epoch
    view.update(after.listing())
    assert {m.worker_id for m in view.workers} == {"a", "b"}, "empty, but not settled"
    after.heartbeat(worker("a", "two"))
    view.update(after.listing())
    assert {m.incarnation for m in view.workers} == {"a-two", "b-one"}
    clock.advance(LEASE_S - 0.5)
    after.heartbeat(worker("a", "two"))
    clock.advance(0.5)
    view.update(after.listing())
    assert [m.worker_id for m in view.workers] == ["a"], "b did not come back within a lease"
    clock.advance(3.0)
    assert view.age_s == 3.0


class DirectoryMachine(RuleBasedStateMachine):
    """Against a model that remembers which incarnation of a worker is listed until when."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.table = MemberTable(LEASE_S, 1000, self.clock)
        self.expected: dict[str, tuple[str, float]] = {}
        self.ended: set[str] = set()

    @rule(name=st.sampled_from("abc"), number=st.integers(0, 5))
    def heartbeat(self, name: str, number: int) -> None:
        member = worker(name, str(number))
        self.table.heartbeat(member)
        known = self.expected.get(name)
        if known and known[1] <= self.clock.now_s():
            known = None
        if member.incarnation in self.ended:
            return
        if known and known[0] != member.incarnation:
            self.ended.add(known[0])
        self.expected[name] = (member.incarnation, self.clock.now_s() + LEASE_S)

    @rule(name=st.sampled_from("abc"), number=st.integers(0, 5))
    def leave(self, name: str, number: int) -> None:
        incarnation = worker(name, str(number)).incarnation
        self.table.leave(incarnation)
        self.ended.add(incarnation)
        if self.expected.get(name, ("",))[0] == incarnation:
            del self.expected[name]

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def lists_what_is_expected(self) -> None:
        now_s = self.clock.now_s()
        live = {i for i, expires_s in self.expected.values() if expires_s > now_s}
        assert {m.incarnation for m in self.table.listing().workers} == live


TestDirectoryMachine = DirectoryMachine.TestCase
TestDirectoryMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


class TableClient:
    """A `DirectoryClient` on a table in this process, which can be away."""

    def __init__(self, table: MemberTable) -> None:
        self.table = table
        self.away = False

    async def heartbeat(self, member: Member | GatewayMember) -> None:
        self._reach().heartbeat(member)

    async def leave(self, incarnation: str) -> None:
        self._reach().leave(incarnation)

    async def report_failure(self, failure: StartFailure) -> None:
        self._reach().report_failure(failure)

    async def listing(self) -> Listing:
        return self._reach().listing()

    def _reach(self) -> MemberTable:
        if self.away:
            raise UnavailableError("away")
        return self.table


FAST = DirectoryConfig(heartbeat_s=0.01, lease_s=0.2, refresh_s=0.01)


async def eventually(condition: object, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_members_come_back_to_a_directory_that_restarted() -> None:
    client = TableClient(MemberTable(FAST.lease_s, 10))
    membership = Membership(client, worker("a"), FAST)
    reader = DirectoryReader(client, FAST)
    await membership.start()
    await reader.start()
    assert [m.worker_id for m in await reader.members()] == ["a"]

    client.away = True
    await asyncio.sleep(0.05)
    assert [m.worker_id for m in await reader.members()] == ["a"]
    client.table = MemberTable(FAST.lease_s, 10)
    client.away = False
    await eventually(lambda: client.table.listing().workers)
    assert [m.worker_id for m in await reader.members()] == ["a"]

    await membership.close()
    await membership.close()
    assert client.table.listing().workers == ()
    await reader.close()


async def test_a_directory_that_is_away_at_the_start_is_tried_again() -> None:
    client = TableClient(MemberTable(FAST.lease_s, 10))
    client.away = True
    membership = Membership(client, worker("a"), FAST)
    reader = DirectoryReader(client, FAST)
    await membership.start()
    await reader.start()
    assert await reader.members() == ()
    assert reader.age_s is None
    client.away = False
    await eventually(lambda: reader.age_s is not None)
    await eventually(lambda: client.table.listing().workers)
    await membership.close()
    await reader.close()


async def test_a_refusal_is_not_the_end_of_heartbeats() -> None:
    client = TableClient(MemberTable(FAST.lease_s, 1))
    client.table.heartbeat(dataclasses.replace(worker("other")))
    membership = Membership(client, worker("a"), FAST)
    await membership.start()
    await eventually(lambda: [m.worker_id for m in client.table.listing().workers] == ["a"])
    await membership.close()
