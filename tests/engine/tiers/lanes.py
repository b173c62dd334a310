"""Lanes that move only when a test says so, and an engine that stands on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.engine.fakes import FakeRunner

from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.engine.tiers.lane import News
from baton.kvtransfer.tiers.config import TierConfig
from baton.protos.clock import ManualClock

T = TypeVar("T")

BLOCK_SIZE = 2
# Of the fake pool: 8 bytes a token.
BLOCK_BYTES = 8 * BLOCK_SIZE
GIB = 1 << 30


class ManualLane:
    """A lane whose errands run, one at a time, when the test lets them."""

    def __init__(self, name: str, news: News) -> None:
        self.name = name
        self._news = news
        self._urgent: deque[Callable[[], None]] = deque()
        self._others: deque[Callable[[], None]] = deque()
        self.full = False

    def submit(
        self, work: Callable[[], T], done: Callable[[T], None], *, urgent: bool = False
    ) -> bool:
        def errand() -> None:
            result = work()
            self._news.put(lambda: done(result))

        if self.full:
            return False
        (self._urgent if urgent else self._others).append(errand)
        return True

    def run_one(self) -> bool:
        """Whether there was one."""
        queue = self._urgent or self._others
        if not queue:
            return False
        queue.popleft()()
        return True

    def close(self) -> None:
        self._urgent.clear()
        self._others.clear()


class Lanes:
    """Makes an engine's lanes and keeps them at hand."""

    def __init__(self) -> None:
        self.made: dict[str, ManualLane] = {}

    def make(self, name: str, news: News) -> ManualLane:
        self.made[name] = ManualLane(name, news)
        return self.made[name]

    def run_all(self) -> None:
        for lane in self.made.values():
            while lane.run_one():
                pass


class TieredEngine:
    """A real engine on a fake runner whose KV is really checked, with real tiers below it."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        num_blocks: int = 8,
        cpu_blocks: int = 16,
        disk_blocks: int = 64,
        **config: object,
    ) -> None:
        tiers = TierConfig(
            cpu_gib=cpu_blocks * BLOCK_BYTES / GIB,
            disk_path="" if folder is None else str(folder),
            disk_gib=0.0 if folder is None else disk_blocks * 4096 / GIB,
        )
        values: dict[str, object] = {
            "model_dir": "fake",
            "block_size": BLOCK_SIZE,
            "num_blocks": num_blocks,
            "max_running": 3,
            "max_step_tokens": 5,
            "kv_tiers": tiers,
            **config,
        }
        built = EngineConfig(**values)  # type: ignore[arg-type]
        self.clock = ManualClock()
        self.lanes = Lanes()
        self.runner = FakeRunner(built, self.clock)
        self.engine = Engine(
            built,
            clock=self.clock,
            runner=self.runner,  # type: ignore[arg-type]  # its steps are fakes
            lanes=self.lanes.make,
        )
