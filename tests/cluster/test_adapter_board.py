from __future__ import annotations

import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton.cluster.adapter_board import AdapterBoard
from baton.cluster.adapter_orders import (
    NO_MARK,
    AdapterState,
    Change,
    GatewayReport,
    LoadFailure,
    WorkerReport,
)
from baton.gateway.adapters import AdapterTable
from baton.protos.adapters import AdapterRef
from baton.protos.clock import ManualClock
from baton.protos.errors import (
    AdapterNotFoundError,
    BatonError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
)

LEASE_S = 5.0
TIMEOUT_S = 60.0


def ref(name: str, content: str) -> AdapterRef:
    return AdapterRef(name=name, adapter_id=content, path=f"/adapters/{content}", rank=4)


class Worker:
    """Loads what it is told to, but for what is `broken`."""

    def __init__(self, name: str, *, broken: frozenset[str] = frozenset()) -> None:
        self.name = name
        self.ready = False
        self.held: set[str] = set()
        self._broken = broken
        self._mark = NO_MARK
        self._failures: tuple[LoadFailure, ...] = ()

    def report(self, board: AdapterBoard) -> None:
        board.work(
            WorkerReport(
                worker_id=self.name,
                incarnation=self.name,
                ready=self.ready,
                mark=self._mark,
                failures=self._failures,
            )
        )

    def apply(self, board: AdapterBoard) -> None:
        """Takes the newest orders and does them, but tells nobody yet."""
        orders = board.orders()
        wanted = {r.adapter_id for r in orders.wanted}
        self.held = wanted - self._broken
        self._failures = tuple(
            LoadFailure(worker_id=self.name, adapter_id=i, code="invalid_adapter", message="bad")
            for i in wanted & self._broken
        )
        self._mark = orders.mark

    def start(self, board: AdapterBoard) -> None:
        """As `WorkerAdapters.start`."""
        while not self.ready:
            self.report(board)
            if self._mark == board.mark:
                self.ready = True
                self.report(board)
            else:
                self.apply(board)


class Gateway:
    def __init__(self, name: str) -> None:
        self.name = name
        self.table = AdapterTable()
        self._mark = NO_MARK

    def report(self, board: AdapterBoard) -> None:
        table = self.table
        board.serve(
            GatewayReport(
                incarnation=self.name,
                mark=self._mark,
                generation=table.generation,
                leftover=table.leftover(),
            )
        )

    def take(self, board: AdapterBoard) -> None:
        orders = board.orders()
        self.table.replace(orders.generation, orders.adapters)
        self._mark = orders.mark


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def board(clock: ManualClock) -> AdapterBoard:
    board = AdapterBoard(LEASE_S, clock=clock)
    clock.advance(LEASE_S)
    return board


def started(board: AdapterBoard, *workers: Worker) -> None:
    for worker in workers:
        worker.start(board)


def step(board: AdapterBoard, *everybody: Worker | Gateway) -> None:
    """Everybody hears the newest orders, does them, and says so."""
    for one in everybody:
        one.apply(board) if isinstance(one, Worker) else one.take(board)
        one.report(board)


def propose(board: AdapterBoard, name: str, content: str, *, force: bool = False) -> int:
    return board.propose(ref(name, content), force=force, timeout_s=TIMEOUT_S)


def names(board: AdapterBoard) -> dict[str, str]:
    return {r.name: r.adapter_id for r in board.orders().adapters}


def test_a_name_joins_the_set_when_every_worker_has_its_content(board: AdapterBoard) -> None:
    one, two, gateway = Worker("one"), Worker("two"), Gateway("g")
    started(board, one, two)
    gateway.report(board)
    number = propose(board, "sql", "a")
    step(board, one)
    assert names(board) == {}
    step(board, two)
    assert names(board) == {"sql": "a"}
    assert not board.change(number).done
    step(board, gateway)
    assert board.change(number).done
    assert board.change(number).failure is None
    assert gateway.table.adapters["sql"].adapter_id == "a"


def test_one_refusal_and_nobody_keeps_it(board: AdapterBoard) -> None:
    one, two = Worker("one"), Worker("two", broken=frozenset({"a"}))
    started(board, one, two)
    number = propose(board, "sql", "a")
    step(board, one, two)
    failure = board.change(number).failure
    assert failure is not None
    assert (failure.worker_id, failure.code) == ("two", "invalid_adapter")
    step(board, one)
    assert one.held == set()
    assert names(board) == {}


def test_silence_is_a_refusal_in_the_end(board: AdapterBoard, clock: ManualClock) -> None:
    one = Worker("one")
    started(board, one)
    number = propose(board, "sql", "a")
    for _ in range(int(TIMEOUT_S)):
        clock.advance(1.0)
        one.report(board)
    failure = board.change(number).failure
    assert failure is not None
    assert failure.code == UnavailableError.default_code
    assert "one did not load it in time" in failure.message
    assert board.orders().wanted == ()


def test_a_worker_that_dies_is_not_waited_for(board: AdapterBoard, clock: ManualClock) -> None:
    one, two = Worker("one"), Worker("two")
    started(board, one, two)
    propose(board, "sql", "a")
    step(board, one)
    clock.advance(LEASE_S - 0.1)
    one.report(board)
    clock.advance(0.2)
    one.report(board)
    assert names(board) == {"sql": "a"}


def test_without_workers_nothing_can_be_checked(board: AdapterBoard, clock: ManualClock) -> None:
    number = propose(board, "sql", "a")
    clock.advance(TIMEOUT_S)
    failure = board.change(number).failure
    assert failure is not None
    assert "there is no worker" in failure.message


def test_a_new_worker_is_ready_with_the_set_and_what_is_being_loaded(board: AdapterBoard) -> None:
    one = Worker("one")
    started(board, one)
    propose(board, "sql", "a")
    step(board, one)
    propose(board, "json", "b")
    late = Worker("late")
    started(board, late)
    assert late.held == {"a", "b"}
    assert names(board) == {"sql": "a"}
    step(board, one)
    assert names(board) == {"sql": "a", "json": "b"}


def test_other_content_needs_force_and_the_old_is_drained(board: AdapterBoard) -> None:
    one, gateway = Worker("one"), Gateway("g")
    started(board, one)
    gateway.report(board)
    propose(board, "sql", "a")
    step(board, one, gateway)
    with pytest.raises(InvalidRequestError, match="other content") as refused:
        propose(board, "sql", "b")
    assert refused.value.code == "adapter_exists"
    with gateway.table.using("sql") as old:
        propose(board, "sql", "b", force=True)
        step(board, one, gateway)
        assert gateway.table.adapters["sql"].adapter_id == "b"
        step(board, one, gateway)
        assert one.held == {"a", "b"}
        assert old.adapter_id == "a"
    step(board, gateway, one)
    assert one.held == {"b"}


def test_the_same_content_again_is_no_new_generation(board: AdapterBoard) -> None:
    one, gateway = Worker("one"), Gateway("g")
    started(board, one)
    propose(board, "sql", "a")
    step(board, one, gateway)
    generation = board.orders().generation
    number = propose(board, "sql", "a")
    step(board, one)
    assert board.change(number).done
    assert board.orders().generation == generation


def test_two_names_of_one_content(board: AdapterBoard) -> None:
    one, gateway = Worker("one"), Gateway("g")
    started(board, one)
    gateway.report(board)
    propose(board, "sql", "a")
    propose(board, "also", "a")
    step(board, one, gateway)
    board.remove("sql")
    step(board, gateway, one)
    assert one.held == {"a"}
    board.remove("also")
    step(board, gateway, one)
    assert one.held == set()


def test_what_cannot_be_changed_says_so(board: AdapterBoard) -> None:
    started(board, Worker("one"))
    with pytest.raises(AdapterNotFoundError, match="'sql'"):
        board.remove("sql")
    propose(board, "sql", "a")
    with pytest.raises(OverloadedError, match="is being loaded"):
        propose(board, "sql", "b", force=True)
    with pytest.raises(OverloadedError, match="is being loaded"):
        board.remove("sql")
    with pytest.raises(UnavailableError, match="was replaced"):
        board.change(99)


def test_the_set_of_a_configuration_begins_once(board: AdapterBoard) -> None:
    one = Worker("one")
    started(board, one)
    board.begin("v1", (ref("sql", "a"),))
    propose(board, "json", "b")
    step(board, one)
    board.begin("v1", (ref("sql", "a"),))
    assert names(board) == {"sql": "a", "json": "b"}
    board.begin("v2", (ref("sql", "c"),))
    assert names(board) == {"sql": "c"}


def test_a_new_life_goes_on_where_the_old_one_ended(clock: ManualClock) -> None:
    saved: list[str] = []
    before = AdapterBoard(
        LEASE_S, save=lambda state: saved.append(json.dumps(state.to_json())), clock=clock
    )
    clock.advance(LEASE_S)
    one, gateway = Worker("one"), Gateway("g")
    started(before, one)
    gateway.report(before)
    propose(before, "sql", "a")
    propose(before, "json", "b")
    step(before, one, gateway)
    before.remove("sql")
    after = AdapterBoard(LEASE_S, state=AdapterState.from_json(json.loads(saved[-1])), clock=clock)
    assert names(after) == {"json": "b"}
    # Nobody has reported to it yet, so that it does not know what is still used.
    step(after, one)
    assert one.held == {"a", "b"}
    clock.advance(LEASE_S)
    with gateway.table.using("sql"):
        step(after, gateway, one)
        assert one.held == {"a", "b"}
    step(after, gateway, one)
    assert one.held == {"b"}


def test_a_change_that_cannot_be_saved_has_not_happened(clock: ManualClock) -> None:
    def refuse(state: AdapterState) -> None:
        raise UnavailableError("no store")

    board = AdapterBoard(LEASE_S, save=refuse, clock=clock)
    clock.advance(LEASE_S)
    with pytest.raises(UnavailableError, match="no store"):
        board.begin("v1", (ref("sql", "a"),))
    assert names(board) == {}


NAMES = st.sampled_from(["sql", "sql", "json"])
CONTENTS = st.sampled_from(["a", "b", "a", "b", "bad"])


class Race(RuleBasedStateMachine):
    """Loads, unloads, requests, deaths and new lives of the board, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(100.0)
        self.saved = AdapterState()
        self.stood_for: dict[str, set[str]] = {}
        self.workers: list[Worker] = []
        self.gateways = [Gateway("g0"), Gateway("g1")]
        self.requests: list[tuple[Gateway, object, str]] = []
        self.numbers: list[int] = []
        self.num_workers = 0
        self.new_board()
        self.clock.advance(LEASE_S)
        self.add_worker()
        self.add_worker()
        for gateway in self.gateways:
            gateway.report(self.board)

    @rule()
    def new_board(self) -> None:
        self.board = AdapterBoard(LEASE_S, state=self.saved, save=self.save, clock=self.clock)
        self.numbers = []

    def save(self, state: AdapterState) -> None:
        self.saved = AdapterState.from_json(json.loads(json.dumps(state.to_json())))
        for name, one in state.adapters.items():
            self.stood_for.setdefault(name, set()).add(one.adapter_id)

    @rule()
    def add_worker(self) -> None:
        if len(self.workers) < 3:
            self.num_workers += 1
            name = f"w{self.num_workers}"
            worker = Worker(name, broken=frozenset({"bad"} if self.num_workers % 2 == 0 else ()))
            worker.start(self.board)
            self.workers.append(worker)

    @precondition(lambda self: len(self.workers) > 1)
    @rule(index=st.integers(0, 2))
    def kill_worker(self, index: int) -> None:
        del self.workers[index % len(self.workers)]

    @rule(name=NAMES, content=CONTENTS, force=st.booleans())
    def load(self, name: str, content: str, force: bool) -> None:
        known = names(self.board).get(name)
        try:
            self.numbers.append(propose(self.board, name, content, force=force))
        except InvalidRequestError:
            assert not force
            assert known not in (None, content)
        except OverloadedError:
            pass

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        try:
            self.numbers.append(self.board.remove(name))
        except OverloadedError:
            return
        except AdapterNotFoundError:
            assert name not in names(self.board)
            return
        assert name not in names(self.board)

    @rule(index=st.integers(0, 2), told=st.booleans())
    def work(self, index: int, told: bool) -> None:
        worker = self.workers[index % len(self.workers)]
        worker.apply(self.board)
        if told:
            worker.report(self.board)

    @rule(num_workers=st.integers(1, 3))
    def most_work(self, num_workers: int) -> None:
        """As usual: all hear of it soon, but for the last now and then."""
        step(self.board, *self.workers[:num_workers])

    @rule(name=NAMES, content=CONTENTS)
    def load_and_ask(self, name: str, content: str) -> None:
        self.load(name, content, True)
        self.most_work(len(self.workers))
        self.request(0, name, True)

    @rule(name=NAMES)
    def unload_and_work(self, name: str) -> None:
        self.unload(name)
        step(self.board, *self.gateways)
        step(self.board, *self.workers)

    @rule(index=st.integers(0, 1), name=NAMES, newest=st.booleans())
    def request(self, index: int, name: str, newest: bool) -> None:
        gateway = self.gateways[index]
        if newest:
            gateway.take(self.board)
            gateway.report(self.board)
        used = gateway.table.using(name)
        try:
            taken = used.__enter__()
        except BatonError:
            assert name not in gateway.table.adapters
            return
        assert taken.adapter_id in self.stood_for[name]
        if gateway.table.generation == self.board.orders().generation:
            assert taken.adapter_id == names(self.board)[name]
        self.requests.append((gateway, used, taken.adapter_id))

    @precondition(lambda self: self.requests)
    @rule(index=st.integers(0, 9))
    def answer(self, index: int) -> None:
        _, used, _ = self.requests.pop(index % len(self.requests))
        used.__exit__(None, None, None)  # type: ignore[attr-defined]

    @rule(seconds=st.sampled_from([0.5, 3.0]), steps=st.integers(1, 4))
    def wait(self, seconds: float, steps: int) -> None:
        for _ in range(steps):
            self.clock.advance(seconds)
            for one in (*self.workers, *self.gateways):
                one.report(self.board)

    @invariant()
    def what_is_used_is_held_by_every_worker(self) -> None:
        used = {adapter_id for _, _, adapter_id in self.requests}
        for worker in self.workers:
            missing = used - worker.held
            # A worker that could not load it has never told otherwise: others serve it.
            assert missing <= {"bad"}, (worker.name, missing)

    @invariant()
    def a_change_is_done_or_refused(self) -> None:
        for number in self.numbers[-3:]:
            change: Change = self.board.change(number)
            if change.done and change.failure is None:
                assert all(g.table.generation >= (change.generation or 0) for g in self.gateways)


TestRace = Race.TestCase
TestRace.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
