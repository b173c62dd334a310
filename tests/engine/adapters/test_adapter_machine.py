"""Loads, unloads, copies and requests raced at random: nobody is ever served the wrong adapter.

The fake runner asserts of every row that the slot it is launched with holds its adapter, whole;
answers depend on it, so KV that was shared across adapters would show, too.
"""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from tests.engine.fakes import Collector, answer, fill, generate, make_engine
from tests.engine.test_scheduler_machine import SchedulerMachine

from baton.protos.adapters import AdapterRef
from baton.protos.errors import AdapterNotFoundError
from baton.protos.types import GenerateRequest

IDS = ["a1", "b2", "c3", "d4"]


def ref(adapter_id: str) -> AdapterRef:
    return AdapterRef(name=adapter_id, adapter_id=adapter_id, path="", rank=1)


class AdapterMachine(SchedulerMachine):
    """The scheduler's machine over two slots, with more adapters than that."""

    max_loras = 2

    def __init__(self) -> None:
        super().__init__()
        assert self.fake.runner.adapters is not None
        self.memory = self.fake.runner.adapters
        self.loaded: list[str] = []
        self.choice = 0

    def _request(self, prompt: list[int], **extra: object) -> GenerateRequest:
        known = ["", *self.loaded]
        return super()._request(prompt, **extra, adapter_id=known[self.choice % len(known)])

    @rule(choice=st.integers(0, 4))
    def choose(self, choice: int) -> None:
        self.choice = choice

    @rule(adapter_id=st.sampled_from(IDS))
    def load(self, adapter_id: str) -> None:
        self.engine.adapters.load(ref(adapter_id))
        if adapter_id not in self.loaded:
            self.loaded.append(adapter_id)

    @precondition(lambda self: self.loaded)
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        adapter_id = data.draw(st.sampled_from(self.loaded))
        self.loaded.remove(adapter_id)
        self.engine.adapters.unload(adapter_id)
        with pytest.raises(AdapterNotFoundError):
            self.engine.reserve(generate("never", [1], adapter_id=adapter_id))

    @precondition(lambda self: self.memory.under_way)
    @rule(count=st.integers(1, 2))
    def finish_copies(self, count: int) -> None:
        self.memory.finish(count)

    def teardown(self) -> None:
        self.memory.instant = True
        self.memory.finish()
        super().teardown()
        for adapter_id in self.loaded:
            self.engine.adapters.unload(adapter_id)
        assert self.engine.adapters.resident().adapters == ()


TestAdapterMachine = AdapterMachine.TestCase
TestAdapterMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class OverlapAdapterMachine(AdapterMachine):
    """The same with the next step launched before the last is read."""

    overlap = True


TestOverlapAdapterMachine = OverlapAdapterMachine.TestCase
TestOverlapAdapterMachine.settings = TestAdapterMachine.settings


def test_a_cold_adapter_stalls_nobody_else() -> None:
    fake = make_engine(max_loras=1)
    assert fake.runner.adapters is not None
    fake.engine.adapters.load(ref("a1"))
    collector = Collector(fake.engine)
    cold = generate("cold", [1, 2, 3], adapter_id="a1")
    fake.engine.add(cold)
    others = [generate(f"o{i}", [4, 5, i]) for i in range(3)]
    for other in others:
        fake.engine.add(other)
    collector.run()
    for other in others:
        collector.check_answer(other)
    assert "cold" not in collector.token_ids
    assert fake.engine.load().num_waiting == 1
    woken: list[bool] = []
    fake.engine.on_wake(lambda: woken.append(True))
    fake.runner.adapters.finish()
    assert woken
    collector.run()
    collector.check_answer(cold)


def test_requests_that_hold_blocks_get_a_slot_before_those_that_wait_for_blocks() -> None:
    """Else a full pool and a promised slot would wait for each other."""
    fake = make_engine(max_loras=1, num_blocks=4, max_running=2)
    assert fake.runner.adapters is not None
    fake.runner.adapters.instant = True
    engine, collector = fake.engine, Collector(fake.engine)
    for adapter_id in ("a1", "b2"):
        engine.adapters.load(ref(adapter_id))
    reserved = generate("reserved", [1] * 11, max_tokens=3, adapter_id="a1")
    reservation = engine.reserve(reserved)
    assert reservation is not None
    waiting = generate("waiting", [2] * 9, max_tokens=3, adapter_id="b2")
    engine.add(waiting)
    collector.run()
    engine.receive("reserved", reservation.epoch, fill(fake, reservation, reserved))
    collector.run()
    collector.check_answer(waiting)
    expected = answer(reserved, engine.model.max_model_len).token_ids
    assert collector.token_ids["reserved"] == expected[1:]


def test_loads_and_unloads_from_other_threads() -> None:
    fake = make_engine(max_loras=2)
    assert fake.runner.adapters is not None
    fake.runner.adapters.instant = True
    collector, stopping = Collector(fake.engine), threading.Event()

    def churn(adapter_id: str) -> None:
        while not stopping.is_set():
            fake.engine.adapters.load(ref(adapter_id))
            fake.engine.adapters.resident()
            fake.engine.adapters.unload(adapter_id)

    threads = [threading.Thread(target=churn, args=(adapter_id,)) for adapter_id in IDS]
    for thread in threads:
        thread.start()
    requests, number = [], 0
    while len(requests) < 60 and number < 200_000:
        number += 1
        request = generate(f"r{number}", [1, number % 7, 3], adapter_id=IDS[number % 4])
        try:
            fake.engine.add(request)
        except AdapterNotFoundError:
            continue
        requests.append(request)
        collector.run()
    stopping.set()
    for thread in threads:
        thread.join()
    assert requests
    for request in requests:
        collector.check_answer(request)
    fake.engine.check_integrity()
