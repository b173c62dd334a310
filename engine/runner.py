"""Computes the steps that the scheduler decides on."""

from __future__ import annotations

from collections.abc import Sequence

from baton.engine.batch import ModelInfo, RunResult, ScheduledRow
from baton.engine.config import EngineConfig
from baton.engine.kv_pool import KVPool
from baton.engine.request import Request
from baton.protos.clock import Clock


class PendingStep:
    """A step that was launched; `wait` brings its results to the host, once."""

    def wait(self) -> RunResult:
        raise NotImplementedError


class Runner:
    """One model on one device, with its KV pool and the state of its batch."""

    model: ModelInfo
    pool: KVPool

    def __init__(self, config: EngineConfig, clock: Clock) -> None:
        raise NotImplementedError

    def add_row(self, request: Request) -> None:
        raise NotImplementedError

    def remove_row(self, request: Request) -> None:
        raise NotImplementedError

    def launch(self, rows: Sequence[ScheduledRow]) -> PendingStep:
        raise NotImplementedError

    def run(self, rows: Sequence[ScheduledRow]) -> RunResult:
        return self.launch(rows).wait()

    def close(self) -> None:
        raise NotImplementedError
