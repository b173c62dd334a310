"""The engine's thread: commands between steps, sleep without work, and a death that all hear of."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import pytest
from tests.engine.fakes import FakeEngine, answer, generate, make_engine

from baton.engine.batch import RunResult, ScheduledRow
from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.protos.errors import BatonError, DeadlineError, InvalidRequestError, UnavailableError
from baton.protos.types import StepOutput

WAIT_S = 20.0


class Driven:
    """A loop on a fake engine, with what its callbacks were told."""

    def __init__(self, **config: object) -> None:
        self.fake: FakeEngine = make_engine(self_check=True, **config)
        self.outputs: list[StepOutput] = []
        self.deaths: list[BaseException] = []
        self.died = threading.Event()
        self._changed = threading.Condition()
        self.loop = EngineLoop(self.fake.engine, self._on_step, self._on_death)

    def _on_step(self, output: StepOutput) -> None:
        assert threading.current_thread().name == "engine"
        with self._changed:
            self.outputs.append(output)
            self._changed.notify()

    def _on_death(self, error: BaseException) -> None:
        self.deaths.append(error)
        self.died.set()

    def finished(self) -> set[str]:
        told = [one for output in self.outputs for one in output.outputs]
        return {one.request_id for one in told if one.finish_reason is not None}

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S)


@pytest.fixture
def driven() -> Iterator[Driven]:
    built = Driven()
    built.loop.start()
    yield built
    built.loop.stop()
    assert built.deaths == []
    built.fake.engine.check_integrity()


def test_requests_from_many_threads_all_finish(driven):
    requests = [generate(f"{n}", [n % 7 + 1] * (n % 9 + 1), max_tokens=5) for n in range(60)]

    def submit(mine: Sequence[int]) -> None:
        for n in mine:
            driven.loop.call(lambda engine, n=n: engine.add(requests[n])).result(WAIT_S)

    threads = [threading.Thread(target=submit, args=(range(i, 60, 6),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    driven.wait_for(lambda: len(driven.finished()) == 60)
    tokens: dict[str, list[int]] = {}
    for output in driven.outputs:
        for one in output.outputs:
            tokens.setdefault(one.request_id, []).extend(one.token_ids)
    assert tokens == {r.request_id: answer(r, 64).token_ids for r in requests}


def test_a_command_returns_its_result_or_its_exception(driven):
    assert driven.loop.call(lambda engine: engine.model.name).result(WAIT_S) == "fake"
    refused = driven.loop.call(lambda engine: engine.add(generate("a", [])))
    with pytest.raises(InvalidRequestError):
        refused.result(WAIT_S)
    assert driven.loop.call(lambda engine: engine.has_work()).result(WAIT_S) is False


def test_commands_run_in_order_and_before_the_next_step(driven):
    seen: list[int] = []
    calls = [driven.loop.call(lambda _, n=n: seen.append(n)) for n in range(200)]
    calls[-1].result(WAIT_S)
    assert seen == list(range(200))


def test_a_command_may_call_again_from_its_callback(driven):
    done: Future[str] = Future()

    def again(_: Future[None]) -> None:
        driven.loop.call(lambda engine: done.set_result(engine.model.name))

    driven.loop.call(lambda engine: None).add_done_callback(again)
    assert done.result(WAIT_S) == "fake"


def test_without_work_the_loop_sleeps(driven):
    driven.loop.call(lambda engine: engine.add(generate("a", [1, 2], max_tokens=2))).result(WAIT_S)
    driven.wait_for(lambda: driven.finished() == {"a"})
    calls = 0
    original = driven.fake.engine.has_work

    def counted() -> bool:
        nonlocal calls
        calls += 1
        return original()

    driven.fake.engine.has_work = counted
    time.sleep(0.3)
    assert calls <= 2


def test_requests_without_blocks_do_not_spin_and_go_on_when_released(driven):
    engine_call = driven.loop.call
    engine_call(lambda e: e.add(generate("held", [1] * 41, max_tokens=2), hold=True))
    engine_call(lambda e: e.add(generate("waits", [2] * 41, max_tokens=2))).result(WAIT_S)
    driven.wait_for(lambda: sum(o.num_prefill_tokens for o in driven.outputs) >= 41)
    assert engine_call(lambda e: e.has_work()).result(WAIT_S) is False
    assert driven.finished() == set()
    engine_call(lambda e: e.release("held"))
    driven.wait_for(lambda: driven.finished() == {"waits"})


def test_a_cancelled_command_does_not_run(driven):
    entered, leave = threading.Event(), threading.Event()

    def block(_: Engine) -> None:
        entered.set()
        leave.wait(WAIT_S)

    ran: list[int] = []
    driven.loop.call(block)
    assert entered.wait(WAIT_S)
    cancelled = driven.loop.call(lambda _: ran.append(1))
    assert cancelled.cancel()
    leave.set()
    driven.loop.call(lambda _: None).result(WAIT_S)
    assert ran == []


def test_a_failing_step_is_death_and_every_call_hears_of_it(monkeypatch):
    driven = Driven()
    driven.loop.start()
    entered, leave = threading.Event(), threading.Event()

    def explode(rows: Sequence[ScheduledRow]) -> RunResult:
        entered.set()
        leave.wait(WAIT_S)
        raise BatonError("the device is gone")

    monkeypatch.setattr(driven.fake.runner, "launch", explode)
    driven.loop.call(lambda engine: engine.add(generate("a", [1]))).result(WAIT_S)
    assert entered.wait(WAIT_S)
    pending = driven.loop.call(lambda engine: engine.has_work())
    cancelled = driven.loop.call(lambda engine: engine.has_work())
    cancelled.cancel()
    leave.set()
    with pytest.raises(BatonError, match="device is gone"):
        pending.result(WAIT_S)
    assert driven.died.wait(WAIT_S)
    with pytest.raises(BatonError, match="device is gone"):
        driven.loop.call(lambda engine: engine.has_work()).result(0)
    assert [str(error) for error in driven.deaths] == ["the device is gone"]
    driven.loop.stop()


def test_a_lost_block_is_found_when_the_engine_becomes_idle():
    driven = Driven()
    driven.loop.start()
    driven.loop.call(lambda engine: engine._blocks.allocate(1)).result(WAIT_S)
    assert driven.died.wait(WAIT_S)
    assert "references, but 0 holders" in str(driven.deaths[0])
    driven.loop.stop()


def test_stop_runs_what_came_before_it_and_refuses_what_comes_after():
    driven = Driven()
    ran: list[int] = []
    driven.loop.start()
    calls = [driven.loop.call(lambda _, n=n: ran.append(n)) for n in range(50)]
    driven.loop.stop()
    assert ran == list(range(50))
    assert all(call.done() for call in calls)
    with pytest.raises(UnavailableError, match="stopped"):
        driven.loop.call(lambda _: None).result(0)
    driven.loop.stop()
    assert driven.deaths == []


def test_stop_before_start_fails_what_was_queued():
    driven = Driven()
    queued = driven.loop.call(lambda _: None)
    driven.loop.stop()
    with pytest.raises(UnavailableError, match="never started"):
        queued.result(0)


def test_stop_does_not_wait_for_ever():
    driven = Driven()
    leave = threading.Event()
    driven.loop.start()
    driven.loop.call(lambda _: leave.wait(WAIT_S))
    with pytest.raises(DeadlineError, match="did not end within"):
        driven.loop.stop(timeout_s=0.05)
    leave.set()
    driven.loop.stop()
