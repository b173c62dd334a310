"""Rank 0's runner: the engine's only one, which takes the other ranks along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from baton.engine.batch import ModelInfo, RunResult, ScheduledRow
from baton.engine.config import EngineConfig
from baton.engine.device import resolve_platform
from baton.engine.grammar.statistics import MaskStatistics
from baton.engine.kv_pool import KVPool
from baton.engine.model_info import read_model_spec
from baton.engine.parallel.adapters import SharedAdapters
from baton.engine.parallel.follower import PRESENT, READY
from baton.engine.parallel.group import TorchGroup
from baton.engine.parallel.hosts import RankHost
from baton.engine.parallel.messages import StepWriter
from baton.engine.parallel.ranks import Ranks
from baton.engine.parallel.shards import Shards, check_shardable
from baton.engine.request import Request
from baton.engine.results import PendingStep
from baton.engine.runner import Runner
from baton.engine.tiers.ranks import TierRank
from baton.kvtransfer.group import RankPool
from baton.protos.clock import Clock


class SharedStep:
    """A step that all ranks run. What a lost rank leaves behind is never a result."""

    def __init__(self, step: PendingStep, ranks: Ranks) -> None:
        self._step = step
        self._ranks = ranks

    def wait(self) -> RunResult:
        """Blocks until the step is done. Raises WorkerLostError when a rank was lost in it."""
        try:
            result = self._step.wait()
        except RuntimeError as error:
            raise self._ranks.cause_of(error) from error
        if self._ranks.failure is not None:
            raise self._ranks.failure
        return result


class ParallelRunner:
    """A BatchRunner over `tensor_parallel_size` ranks.

    model, pool: of rank 0; the pools of all ranks have the same blocks, each its own KV heads.
    other_pools: those of the other ranks, for a connector. other_tiers: what they keep below.
    """

    model: ModelInfo
    pool: KVPool

    def __init__(self, config: EngineConfig, clock: Clock, host: RankHost) -> None:
        """Starts the other ranks and loads the model, all ranks at the same time.

        Raises ConfigError when the model cannot be split so, before anything is started, and what
        Runner raises, of any rank.
        """
        shards = Shards(0, config.tensor_parallel_size)
        check_shardable(read_model_spec(config.model_dir), shards.size)
        own = replace(config, device=host.device(0, config.device))
        device = resolve_platform(own.device, own.dtype).device
        self._ranks = Ranks(config, host)
        self._writer = StepWriter()
        try:
            self._ranks.wait(PRESENT)
            group = TorchGroup(self._ranks.store, shards, device, host.address)
            self._ranks.on_failure(lambda _: group.abort())
            self._runner = Runner(own, clock, group)
            self._ranks.wait(READY)
        except RuntimeError as error:
            failure = self._ranks.cause_of(error)
            self._ranks.close()
            raise failure from error
        except BaseException:
            self._ranks.close()
            raise
        self.model = self._runner.model
        self.pool = self._runner.pool
        self.other_pools: Sequence[RankPool] = tuple(self._ranks.pools)
        self.other_tiers: Sequence[TierRank] = tuple(self._ranks.pools)
        self.adapters: SharedAdapters | None = None
        if self._runner.adapters is not None:
            pool, ranks = self._runner.adapters, self._ranks
            self.adapters = SharedAdapters(pool, ranks.pools, ranks.send)

    @property
    def overlaps(self) -> bool:
        return self._runner.overlaps

    def watch(self, on_failure: Callable[[BaseException], None]) -> None:
        self._ranks.on_failure(on_failure)

    def add_row(self, request: Request) -> None:
        self._writer.enter(request)
        self._runner.add_row(request)

    def remove_row(self, request: Request) -> None:
        self._runner.remove_row(request)

    def launch(self, rows: Sequence[ScheduledRow]) -> SharedStep:
        """As Runner.launch, on all ranks. Raises WorkerLostError when one is gone."""
        try:
            if self.adapters is not None:
                self.adapters.tell_forgotten()
            if rows:
                self._ranks.send(self._writer.write(rows))
            return SharedStep(self._runner.launch(rows), self._ranks)
        except (RuntimeError, OSError) as error:
            raise self._ranks.cause_of(error) from error

    def run(self, rows: Sequence[ScheduledRow]) -> RunResult:
        """One step, start to end."""
        return self.launch(rows).wait()

    def mask_statistics(self) -> MaskStatistics:
        """This rank's, which alone has grammars."""
        return self._runner.mask_statistics()

    def close(self) -> None:
        """Ends the other ranks, then this one's part."""
        self._ranks.close()
        self._runner.close()
