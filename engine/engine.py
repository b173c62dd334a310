"""The engine's face: token in, token out, one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from baton.engine.adapters.adapters import Adapters, AdapterStatistics
from baton.engine.batch import (
    BatchRunner,
    BlockStore,
    ModelInfo,
    RunningStep,
    RunResult,
    ScheduledRow,
)
from baton.engine.block_pool import BlockPool, BlockPoolStatistics
from baton.engine.config import EngineConfig
from baton.engine.gates import Gates
from baton.engine.grammar.compiler import CompilerStatistics, GrammarCompiler
from baton.engine.grammar.gate import GrammarGate
from baton.engine.grammar.statistics import MaskStatistics
from baton.engine.grammar.vocabulary import Vocabulary
from baton.engine.handover import Reservation
from baton.engine.meter import StepMeter
from baton.engine.parallel.hosts import RankHost
from baton.engine.prefix_moves import PrefixMoves
from baton.engine.rules import RequestRules
from baton.engine.scheduler import Scheduler
from baton.engine.scheduler_statistics import SchedulerStatistics
from baton.engine.tiers.build import MakeLane, build_tiers
from baton.engine.tiers.lane import ThreadLane
from baton.engine.tiers.statistics import TierStatistics
from baton.protos.clock import Clock, SystemClock
from baton.protos.errors import OverloadedError
from baton.protos.types import (
    GenerateRequest,
    GrammarCounts,
    KvEvents,
    RequestOutput,
    StepOutput,
    WorkerLoad,
)

__all__ = ["Engine", "EngineStatistics", "Reservation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """Where requests and blocks are, and counts since the engine was built; of tokens, those of
    prompts, those sampled, and those that a grammar left no choice about."""

    requests: SchedulerStatistics
    blocks: BlockPoolStatistics
    grammars: CompilerStatistics
    masks: MaskStatistics
    tiers: TierStatistics | None
    adapters: AdapterStatistics
    num_steps: int
    num_prefill_tokens: int
    num_decode_tokens: int
    num_jumped_tokens: int


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step under way. `step` is None where there was nothing to compute."""

    rows: list[ScheduledRow]
    step: RunningStep | None
    at_s: float


class Engine:
    """Runs one model. Not thread-safe: one thread drives it (`engine.loop.EngineLoop`).

    model: what was loaded; `max_model_len` is what this engine can serve, which its KV pool may
        make shorter than the model's own: every accepted request fits the pool when alone in it.
    adapters: those that requests may name; `load` and `unload` are for any thread.
    pool: the KV memory, for a connector to register, as are the `other_pools` of other ranks.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        clock: Clock | None = None,
        runner: BatchRunner | None = None,
        ranks: RankHost | None = None,
        lanes: MakeLane = ThreadLane,
    ) -> None:
        """Loads the model, unless a runner is given. Raises ModelLoadError or ConfigError.

        lanes: makes what moves KV between tiers; threads, but in tests.

        ranks: where the other ranks of a tensor-parallel model are started; None: as processes of
            this machine.
        """
        self._clock = clock or SystemClock()
        self._runner = runner or _load_runner(config, self._clock, ranks)
        self.pool: BlockStore = self._runner.pool
        self.other_pools = self._runner.other_pools
        num_blocks = self.pool.num_blocks
        max_model_len = min(self._runner.model.max_model_len, num_blocks * config.block_size)
        self.model: ModelInfo = replace(self._runner.model, max_model_len=max_model_len)
        self.config = config
        self._blocks = BlockPool(num_blocks, prefix_cache=config.prefix_cache)
        self._moves = PrefixMoves(self._blocks, config.block_size)
        self._meter = StepMeter()
        # From here on there is something to close.
        self._tiers = build_tiers(
            config, self._runner, self._blocks, self._clock, self._compute_s, lanes
        )
        rules = self._rules = RequestRules(self.model, max_model_len)
        eos_token_ids = self.model.eos_token_ids
        vocabulary = Vocabulary(config.model_dir, self.model.vocab_size, eos_token_ids)
        self._gate = GrammarGate(GrammarCompiler(vocabulary, self._clock), eos_token_ids)
        self.adapters = Adapters(self._runner.adapters, config, self._clock)
        gates = Gates(self._gate, self.adapters.gate)
        self._scheduler = Scheduler(
            config, rules, self._blocks, self._runner, self._clock, gates, self._tiers
        )
        overlap = self._runner.overlaps if config.overlap is None else config.overlap
        self._runs_ahead = overlap
        self._under_way: _Launched | None = None
        self._committed_s = 0.0
        self._num_steps = 0
        self._num_prefill_tokens = 0
        self._num_decode_tokens = 0

    def add(self, request: GenerateRequest, *, hold: bool = False) -> None:
        """Queues a request; its tokens come out of step().

        hold: for a prefill worker. The prompt is computed and one token sampled, its only output,
        which carries a finish_reason only if that token ends the whole request. The prompt's
        blocks stay until release(). PrefillProgress is reported after every step that computed
        part of it.

        Raises ContextLengthError or InvalidRequestError for what can never run, OverloadedError
        when `max_waiting` requests wait, or for a hold of an id that is in quarantine, and
        AdapterNotFoundError for an adapter that is not loaded.
        """
        waiting = self._scheduler.num_queued
        if waiting >= self.config.max_waiting:
            raise OverloadedError(
                f"{waiting} requests are waiting, and max_waiting is {self.config.max_waiting}",
                retry_after_s=self._queue_s(),
            )
        self._scheduler.add(request, hold=hold)

    def reserve(self, request: GenerateRequest) -> Reservation | None:
        """Blocks for a request whose KV a peer will write; None when there is no room now.

        Raises as add() does for what can never run. It lasts until receive() or abort().
        """
        return self._scheduler.reserve(request)

    def receive(self, request_id: str, epoch: int, first: RequestOutput) -> None:
        """Every block of the reservation is written: the request decodes on after `first`.

        `first` is not reported again; if it has a finish_reason, the request is over. Raises
        StaleEpochError if the reservation `epoch` is over or never was.
        """
        self._scheduler.receive(request_id, epoch, first)

    def abort(self, request_id: str, *, quarantine: bool = False) -> bool:
        """Ends a request in any state, without an output; whether it was known.

        quarantine: a peer may still touch its blocks, so they stay out of use until release().
        """
        if self._under_way is not None and self._under_way.step is not None:
            # Its blocks may be another peer's to write at once: nothing here may still write them.
            self._under_way.step.wait()
        return self._scheduler.abort(request_id, quarantine=quarantine)

    def release(self, request_id: str, *, epoch: int | None = None) -> None:
        """Ends the quarantine of that id's blocks, or if there is none its hold.

        epoch: only the quarantine of that reservation. Unknown ids and epochs are ignored.
        """
        self._scheduler.release(request_id, epoch=epoch)

    def recall(
        self, prefix: GenerateRequest, done: Callable[[], None], *, near: bool = False
    ) -> None:
        """`done`, exactly once and on this thread, when the prefix cache has what slower tiers know
        of a prompt, as far as that is quicker than computing it. near: only what host memory has.
        """
        self._tiers.recall(prefix, self._headroom, done, near=near)

    def lend(self, move_id: str, request: GenerateRequest) -> tuple[int, ...]:
        """Blocks of the longest cached prefix, for another worker; see `PrefixMoves`."""
        return self._moves.lend(move_id, request)

    def borrow(self, move_id: str, request: GenerateRequest) -> Reservation | None:
        """Blocks for a prefix that another worker has cached; see `PrefixMoves`."""
        return self._moves.borrow(move_id, request, self._headroom())

    def end_move(self, move_id: str, epoch: int = 0, *, num_tokens: int = 0) -> None:
        """Ends lending or borrowing; of borrowed blocks the first `num_tokens` tokens came, and
        are found from now on. Unknown ids are ignored, unless tokens came: StaleEpochError.
        """
        if num_tokens:
            self._moves.keep(move_id, epoch, num_tokens)
        self._moves.release(move_id)
        self._scheduler.release(move_id)

    def _headroom(self) -> int:
        """A block for each running request: what moves for others must not stop those."""
        return self._scheduler.statistics().num_running

    def has_work(self) -> bool:
        """Whether step() would do something now.

        Only a command can make it true again, or what `on_wake` and `idle_s` tell of: a grammar
        that was compiled, an adapter that came to the device, KV that came from a slower tier.
        """
        return self._under_way is not None or self._scheduler.has_work()

    def on_wake(self, call: Callable[[], None]) -> None:
        """`call` runs on some thread whenever has_work() may have become true by itself."""
        self._gate.wake = self.adapters.slots.wake = call
        self._tiers.wake_with(call)

    @property
    def idle_s(self) -> float | None:
        """has_work() may become true by itself after so many seconds; None: only as above."""
        deadline_s = self._tiers.next_deadline_s
        return None if deadline_s is None else max(0.0, deadline_s - self._clock.now_s())

    @property
    def num_compiling(self) -> int:
        """Requests that wait for their grammars: has_work() will become true by itself."""
        return len(self._gate)

    def step(self) -> StepOutput:
        """Commits one batch, having launched the one after it where the device can run ahead.

        An exception leaves the engine unusable.
        """
        launched = self._under_way or self._launch()
        self._under_way = None
        if self._runs_ahead and launched.rows and self._scheduler.may_run_ahead():
            after = self._launch()
            self._under_way = after if after.rows else None
        result = RunResult() if launched.step is None else launched.step.wait()
        output = self._scheduler.commit(launched.rows, result)
        now_s = self._clock.now_s()
        output.duration_s = now_s - max(launched.at_s, self._committed_s)
        self._committed_s = now_s
        self._meter.observe(launched.rows, output, now_s)
        self._num_steps += 1
        self._num_prefill_tokens += output.num_prefill_tokens
        self._num_decode_tokens += output.num_decode_tokens
        return output

    def _launch(self) -> _Launched:
        at_s = self._clock.now_s()
        rows = self._scheduler.schedule()
        if not rows:
            return _Launched(rows, None, at_s)
        step = self._runner.launch(rows)
        self._scheduler.launched(rows)
        return _Launched(rows, step, at_s)

    def load(self) -> WorkerLoad:
        """What the router plans with; cached blocks that nobody uses count as free."""
        requests = self._scheduler.statistics()
        return WorkerLoad(
            num_running=requests.num_running,
            num_waiting=requests.num_waiting + requests.num_reserved,
            queued_prefill_tokens=requests.queued_prefill_tokens,
            running_kv_tokens=requests.running_kv_tokens,
            total_blocks=self._blocks.num_blocks,
            free_blocks=self._blocks.num_available,
            unplaced_blocks=-(-requests.unplaced_tokens // self.config.block_size),
            prefill_tokens_per_s=self._meter.prefill_tokens_per_s,
            decode_step_s=self._meter.decode_step_s,
            itl_s=self._meter.itl_s,
            max_step_tokens=self.config.max_step_tokens,
            kv_bytes_per_token=self.pool.layout.token_bytes,
            num_preemptions=requests.num_preemptions,
        )

    def report(self) -> WorkerLoad:
        """`load()` for gateways: with the steps sampled since the last report, and the digest of
        the prefix cache, which belongs with the events drained up to now."""
        return replace(
            self.load(),
            steps=self._meter.take_samples(),
            kv_digest=self._blocks.digest(),
            tiers=self._tiers.report(),
            grammars=self._grammar_counts(),
        )

    def _grammar_counts(self) -> GrammarCounts | None:
        grammars = self._gate.statistics()
        if not grammars.compiled and not grammars.refused:
            return None
        masks = self._runner.mask_statistics()
        return GrammarCounts(
            compiled=grammars.compiled,
            refused=grammars.refused,
            num_hits=grammars.num_hits,
            num_cached=grammars.num_cached,
            compile_s=grammars.compile_s,
            num_masks=masks.num_filled,
            fill_s=masks.fill_s,
            num_jumped_tokens=self._rules.num_jumped_tokens,
        )

    def drain_kv_events(self) -> KvEvents:
        """Net changes of the prefix cache, and of what is kept below it, since the last call."""
        return self._tiers.drain(self._blocks.drain_events())

    def snapshot_kv(self) -> KvEvents:
        """`cleared`, then everything that is stored now.

        What drain_kv_events() has not handed out yet stays pending. To a reader of the snapshot it
        repeats facts: a hash stored that is stored already, a hash removed that was not there.
        """
        return self._tiers.snapshot(self._blocks.snapshot())

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            requests=self._scheduler.statistics(),
            blocks=self._blocks.statistics(),
            grammars=self._gate.statistics(),
            masks=self._runner.mask_statistics(),
            tiers=self._tiers.statistics(),
            adapters=self.adapters.resident(),
            num_steps=self._num_steps,
            num_prefill_tokens=self._num_prefill_tokens,
            num_decode_tokens=self._num_decode_tokens,
            num_jumped_tokens=self._rules.num_jumped_tokens,
        )

    def check_integrity(self) -> None:
        """Proves that requests, slots and blocks are conserved; raises BatonError otherwise."""
        self._scheduler.check_integrity(self._moves)

    def watch(self, on_failure: Callable[[BaseException], None]) -> None:
        """Calls `on_failure` once, from any thread, if the engine fails between steps."""
        self._runner.watch(on_failure)

    def close(self) -> None:
        """Frees the model and the pool. The engine cannot be used afterwards."""
        self._gate.close()
        self._tiers.close()
        self._runner.close()

    def _compute_s(self, num_blocks: int) -> float | None:
        rate = self._meter.prefill_tokens_per_s
        return num_blocks * self.config.block_size / rate if rate > 0 else None

    def _queue_s(self) -> float:
        rate = self._meter.prefill_tokens_per_s
        waiting = self._scheduler.statistics().queued_prefill_tokens
        return min(max(waiting / rate, 0.1), 60.0) if rate > 0 else 1.0


def _load_runner(config: EngineConfig, clock: Clock, ranks: RankHost | None) -> BatchRunner:
    # Imported here: they load torch, which an engine on a given runner does without.
    if config.tensor_parallel_size > 1:
        from baton.engine.parallel.hosts import ProcessRanks
        from baton.engine.parallel.runner import ParallelRunner

        return ParallelRunner(config, clock, ranks or ProcessRanks())
    from baton.engine.runner import Runner

    return Runner(config, clock)
