"""Any commands in any order over tiny tiers, with copies that end whenever they like."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.engine.fakes import Collector, generate
from tests.engine.tiers.lanes import TieredEngine

from baton.protos.errors import OverloadedError
from baton.protos.types import GenerateRequest

DISK_BLOCKS = 14
# Few prompts that share beginnings, so that blocks go and come back.
PROMPTS = st.builds(
    lambda base, length: ([base] * 3 + [1, 2] * 8)[:length],
    st.integers(1, 3),
    st.integers(1, 13),
)


class TierMachine(RuleBasedStateMachine):
    """The fake runner reads every token's KV back through the blocks before it samples: a block
    that came back wrong, or too late, shows at once."""

    overlap = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="baton-tiers-"))
        self.count = 0
        self._build()

    def _build(self) -> None:
        self.fake = TieredEngine(
            self.folder,
            num_blocks=9,
            cpu_blocks=8,
            disk_blocks=DISK_BLOCKS,
            max_waiting=6,
            overlap=self.overlap,
        )
        self.engine = self.fake.engine
        self.collector = Collector(self.engine)
        self.running: dict[str, GenerateRequest] = {}
        self.held: dict[str, GenerateRequest] = {}
        self.quarantined: list[str] = []
        self.kept: set[bytes] = set()

    @rule(prompt=PROMPTS, max_tokens=st.integers(1, 6), hold=st.booleans())
    def add(self, prompt: list[int], max_tokens: int, hold: bool) -> None:
        self.count += 1
        request = generate(f"r{self.count}", prompt, max_tokens=max_tokens, ignore_eos=False)
        try:
            self.engine.add(request, hold=hold)
        except OverloadedError:
            return
        (self.held if hold else self.running)[request.request_id] = request

    @rule(prompts=st.lists(PROMPTS, min_size=1, max_size=4))
    def serve(self, prompts: list[list[int]]) -> None:
        """One after the other, with copies that end in time."""
        for prompt in prompts:
            self.add(prompt, 1, False)
            for _ in range(20):
                self.fake.lanes.run_all()
                if self.engine.has_work():
                    self.collector.step()
        self._check_ended()

    @precondition(lambda self: self.running or self.held)
    @rule(data=st.data(), quarantine=st.booleans())
    def abort(self, data: st.DataObject, quarantine: bool) -> None:
        name = data.draw(st.sampled_from(sorted({**self.running, **self.held})))
        self.engine.abort(name, quarantine=quarantine)
        self.running.pop(name, None)
        self.held.pop(name, None)
        if quarantine:
            self.quarantined.append(name)

    @precondition(lambda self: self.quarantined)
    @rule()
    def end_quarantine(self) -> None:
        self.engine.release(self.quarantined.pop())

    @precondition(lambda self: self.engine.has_work())
    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.engine.has_work():
                self.collector.step()
        self._check_ended()

    @rule(name=st.sampled_from(["out", "in", "disk"]), count=st.integers(1, 4))
    def move(self, name: str, count: int) -> None:
        for _ in range(count):
            self.fake.lanes.made[name].run_one()

    @rule(name=st.sampled_from(["out", "in", "disk"]), full=st.booleans())
    def fill_lane(self, name: str, full: bool) -> None:
        self.fake.lanes.made[name].full = full

    @rule(seconds=st.sampled_from([0.1, 10.0]))
    def wait(self, seconds: float) -> None:
        self.fake.clock.advance(seconds)

    @rule(data=st.data(), cut=st.booleans())
    def damage_a_file(self, data: st.DataObject, cut: bool) -> None:
        files = sorted(self._files())
        if files:
            file = data.draw(st.sampled_from(files))
            raw = file.read_bytes()
            file.write_bytes(raw[:-1] if cut else raw[:-1] + bytes([raw[-1] ^ 1]))

    @rule()
    def crash(self) -> None:
        """The process is gone, whatever was under way, and another takes the folder over."""
        self._drop_process()
        self._build()

    @rule()
    def drain_events(self) -> None:
        events = self.engine.drain_kv_events()
        self.kept = (self.kept - set(events.lost)) | set(events.kept)
        assert set(events.stored) <= self.kept
        assert self.kept == set(self.engine.snapshot_kv().kept)

    @invariant()
    def books_are_kept(self) -> None:
        self.engine.check_integrity()

    def teardown(self) -> None:
        while self.quarantined:
            self.engine.release(self.quarantined.pop())
        for lane in self.fake.lanes.made.values():
            lane.full = False
        for _ in range(100):
            self.fake.lanes.run_all()
            self.collector.run()
            self.fake.clock.advance(1.0)
            for name in [n for n in self.held if n in self.collector.token_ids]:
                del self.held[name]
                self.engine.release(name)
        self._check_ended()
        assert not self.running
        assert not self.held
        statistics = self.engine.statistics()
        assert statistics.tiers is not None
        assert statistics.tiers.host.num_in_use == 0
        assert statistics.tiers.lower[0].store.num_blocks <= DISK_BLOCKS
        load = self.engine.load()
        assert load.free_blocks == load.total_blocks
        self.engine.check_integrity()
        self._drop_process()
        shutil.rmtree(self.folder)

    def _check_ended(self) -> None:
        for name in [n for n in self.running if n in self.collector.finish_reasons]:
            self.collector.check_answer(self.running.pop(name), self.engine.model.max_model_len)

    def _files(self) -> Iterator[Path]:
        return self.folder.glob("worker-*/??/*")

    def _drop_process(self) -> None:
        self.engine.close()


TestTierMachine = TierMachine.TestCase
TestTierMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


class OverlapTierMachine(TierMachine):
    """The same with the next step launched before the last is read."""

    overlap = True


TestOverlapTierMachine = OverlapTierMachine.TestCase
TestOverlapTierMachine.settings = TestTierMachine.settings
