"""An engine's other half for tests: no model, but a paged KV cache that is really checked.

A token's "KV" is a number that depends on the token and on everything before it. The fake runner
writes these numbers into the blocks that the scheduler assigned, and before it samples it reads the
whole sequence back through them. A block that was shared wrongly, reused too early, left out or
published before it was written shows up at once, and every answer can be told in advance.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tests.engine.adapters.fake_memory import FakeMemory

from baton.engine.batch import ModelInfo, RunResult, ScheduledRow
from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.engine.grammar.statistics import MaskStatistics
from baton.engine.handover import Reservation
from baton.engine.request import Request
from baton.kvtransfer.layout import KVLayout
from baton.protos.clock import Clock, ManualClock
from baton.protos.hashing import adapter_salt
from baton.protos.types import (
    FinishReason,
    GenerateRequest,
    RequestOutput,
    SamplingParams,
    TokenLogprob,
)

VOCAB_SIZE = 40
EOS = 0


def kv_of(token_ids: Iterable[int], salt: bytes = b"") -> list[int]:
    """The fake KV of each token of a sequence."""
    value = zlib.crc32(salt)
    values = []
    for token_id in token_ids:
        value = hash((value, token_id))
        values.append(value)
    return values


def next_token(kv: int) -> int:
    return (kv >> 7) % VOCAB_SIZE


@dataclass(frozen=True)
class Answer:
    token_ids: list[int]
    finish_reason: FinishReason


def answer(request: GenerateRequest, max_model_len: int) -> Answer:
    """What any engine must generate for the request, in whatever way it gets there."""
    known = [*request.prompt_token_ids, *request.output_token_ids]
    sampling = request.sampling
    stop_ids = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else (EOS,))}
    longest = min(len(request.prompt_token_ids) + sampling.max_tokens, max_model_len)
    made: list[int] = []
    salt = adapter_salt(request.cache_salt, request.adapter_id)
    while True:
        token_id = next_token(kv_of([*known, *made], salt)[-1])
        made.append(token_id)
        if token_id in stop_ids:
            return Answer(made, FinishReason.STOP)
        if len(known) + len(made) >= longest:
            return Answer(made, FinishReason.LENGTH)


def generate(
    request_id: str, prompt: Sequence[int], max_tokens: int = 4, **more: object
) -> GenerateRequest:
    """A request; keyword arguments go to the request or to its sampling, wherever they belong."""
    names = ("output_token_ids", "priority", "cache_salt", "adapter_id")
    outer = {k: more.pop(k) for k in names if k in more}
    more.setdefault("ignore_eos", True)
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, **more)  # type: ignore[arg-type]
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=list(prompt),
        sampling=sampling,
        **outer,  # type: ignore[arg-type]
    )


class FakePool:
    """Cells of fake KV, int64 [num_blocks, block_size], that share a real tensor's memory."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.layout = KVLayout(
            num_layers=1, kv_heads=1, block_size=block_size, head_dim=1, dtype="float32"
        )
        self.tensor = torch.zeros(num_blocks, *self.layout.block_shape)
        self.cells = self.tensor.view(num_blocks, -1).numpy().view(np.int64)

    def write(self, block_ids: Sequence[int], position: int, kv: int) -> None:
        self.cells[block_ids[position // self.block_size], position % self.block_size] = kv

    def read(self, block_ids: Sequence[int], num_tokens: int) -> list[int]:
        found: list[int] = self.cells[list(block_ids)].reshape(-1)[:num_tokens].tolist()
        return found


class FakeRunner:
    """Satisfies BatchRunner; fails with AssertionError where the scheduler broke a promise."""

    def __init__(self, config: EngineConfig, clock: ManualClock, max_model_len: int = 64) -> None:
        assert config.num_blocks is not None
        self.pool = FakePool(config.num_blocks, config.block_size)
        self.model = ModelInfo(
            name="fake",
            digest="fake",
            architecture="fake",
            vocab_size=VOCAB_SIZE,
            max_model_len=config.max_model_len or max_model_len,
            eos_token_ids=(EOS,),
            num_layers=1,
            dtype="float32",
            device="cpu",
        )
        self.rows: dict[int, Request] = {}
        self.overlaps = False
        self.other_pools = ()
        self.other_tiers = ()
        self.adapters = FakeMemory(config.max_loras) if config.max_loras else None
        self._entered: dict[int, Request] = {}
        self._tokens: dict[int, list[int]] = {}
        self._under_way: deque[FakeStep] = deque()
        self.batches: list[list[tuple[str, int]]] = []
        self.closed = False
        self._clock = clock
        self._max_step_tokens = config.max_step_tokens

    def add_row(self, request: Request) -> None:
        assert request.slot not in self.rows
        assert len(request.block_ids) * self.pool.block_size >= request.num_tokens - 1
        self.rows[request.slot] = request
        self._entered[request.slot] = request

    def remove_row(self, request: Request) -> None:
        assert self.rows.pop(request.slot) is request
        self._entered.pop(request.slot, None)

    def watch(self, on_failure: Callable[[BaseException], None]) -> None:
        self.on_failure = on_failure

    def launch(self, rows: Sequence[ScheduledRow]) -> FakeStep:
        assert rows, "an empty step was run"
        assert sum(row.num_new_tokens for row in rows) <= self._max_step_tokens
        assert len({row.request.slot for row in rows}) == len(rows)
        self._clock.advance(0.01)
        self.batches.append([(row.request.request_id, row.num_new_tokens) for row in rows])
        for row in rows:
            assert self.rows[row.request.slot] is row.request
            if row.request.adapter_id:
                assert self.adapters is not None
                assert self.adapters.contents[row.request.adapter_slot] == row.request.adapter_id
            else:
                assert row.request.adapter_slot == -1
        entered, self._entered = self._entered, {}
        step = FakeStep(self, [FakeRow(row) for row in rows], entered)
        self._under_way.append(step)
        assert len(self._under_way) <= 2
        return step

    def run_until(self, step: FakeStep) -> None:
        """As late as possible: whoever touched its blocks meanwhile is found out."""
        while step.result is None:
            first = self._under_way.popleft()
            self._tokens.update(first.entered)
            result = RunResult()
            for row in first.rows:
                self._run_row(row, result)
            first.result = result

    def mask_statistics(self) -> MaskStatistics:
        return MaskStatistics()

    def close(self) -> None:
        self.closed = True

    def _run_row(self, row: FakeRow, result: RunResult) -> None:
        known = self._tokens[row.slot]
        assert row.count > 0
        assert row.end <= len(known)
        assert row.samples == (row.end == len(known))
        kv = kv_of(known[: row.end], row.salt)
        for position in range(row.start, row.end):
            self.pool.write(row.block_ids, position, kv[position])
        assert self.pool.read(row.block_ids, row.end) == kv, f"{row.request_id}: wrong KV"
        if row.num_prompt_logprobs:
            last = min(row.end + 1, row.num_prompt_logprobs)
            result.prompt_logprobs[row.request_id] = [
                TokenLogprob(token_id, -1.0, 1) for token_id in known[row.start + 1 : last]
            ]
        if row.samples:
            token_id = next_token(kv[-1])
            known.append(token_id)
            result.sampled.append(token_id)
            result.logprobs.append(TokenLogprob(token_id, -0.5, 1) if row.logprobs else None)


class FakeRow:
    """What a runner may read of a row, as it was at the launch."""

    def __init__(self, row: ScheduledRow) -> None:
        request = row.request
        self.request_id = request.request_id
        self.slot = request.slot
        self.start, self.end, self.count = row.start, row.end, row.num_new_tokens
        self.samples = row.samples
        self.salt = request.cache_salt
        self.block_ids = list(request.block_ids)
        self.logprobs = request.sampling.logprobs is not None
        self.num_prompt_logprobs = request.num_prompt_tokens if request.needs_prompt_logprobs else 0


class FakeStep:
    """A step under way: it runs when it is waited for."""

    def __init__(
        self, runner: FakeRunner, rows: list[FakeRow], entered: dict[int, Request]
    ) -> None:
        self.rows = rows
        self.entered = {slot: list(request.token_ids) for slot, request in entered.items()}
        self.result: RunResult | None = None
        self._runner = runner

    def wait(self) -> RunResult:
        self._runner.run_until(self)
        assert self.result is not None
        return self.result


@dataclass
class FakeEngine:
    """A real engine on a fake runner."""

    engine: Engine
    runner: FakeRunner
    clock: ManualClock


def make_engine(**config: object) -> FakeEngine:
    """Small by default: 16 blocks of 4 tokens, 4 running, 8 tokens to a step.

    No room is left for outputs, so that decodes find the pool empty.
    """
    values: dict[str, object] = {
        "model_dir": "fake",
        "block_size": 4,
        "num_blocks": 16,
        "max_running": 4,
        "max_step_tokens": 8,
        "expected_output_tokens": 0,
    }
    built = EngineConfig(**{**values, **config})  # type: ignore[arg-type]
    clock = ManualClock()
    runner = FakeRunner(built, clock)
    injected: Clock = clock
    return FakeEngine(Engine(built, clock=injected, runner=runner), runner, clock)  # type: ignore[arg-type]


class Builder:
    """Builds fake engines, and checks them all in the end."""

    def __init__(self) -> None:
        self._built: list[FakeEngine] = []

    def make(self, **config: object) -> tuple[FakeEngine, Collector]:
        fake = make_engine(**config)
        self._built.append(fake)
        return fake, Collector(fake.engine)

    def check(self) -> None:
        for fake in self._built:
            fake.engine.check_integrity()


def fill(fake: FakeEngine, reservation: Reservation, request: GenerateRequest) -> RequestOutput:
    """What a prefill worker does: writes the KV that is missing, and samples the first token."""
    known = [*request.prompt_token_ids, *request.output_token_ids]
    kv = kv_of(known, adapter_salt(request.cache_salt, request.adapter_id))
    for position in range(reservation.num_cached_tokens, len(known)):
        fake.runner.pool.write(reservation.block_ids, position, kv[position])
    expected = answer(request, fake.engine.model.max_model_len)
    return RequestOutput(
        request_id=request.request_id,
        token_ids=expected.token_ids[:1],
        finish_reason=expected.finish_reason if len(expected.token_ids) == 1 else None,
    )


class Collector:
    """Steps an engine and gathers what each request was told."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.token_ids: dict[str, list[int]] = {}
        self.finish_reasons: dict[str, FinishReason] = {}
        self.progress: dict[str, list[int]] = {}
        self.num_preempted = 0

    def step(self) -> None:
        output = self._engine.step()
        self.num_preempted += output.num_preempted
        for one in output.outputs:
            assert one.request_id not in self.finish_reasons, "told something after its end"
            self.token_ids.setdefault(one.request_id, []).extend(one.token_ids)
            if one.finish_reason is not None:
                self.finish_reasons[one.request_id] = one.finish_reason
        for progress in output.progress:
            self.progress.setdefault(progress.request_id, []).append(progress.num_computed_tokens)

    def check_answer(self, request: GenerateRequest, max_model_len: int = 64) -> None:
        expected = answer(request, max_model_len)
        assert self.token_ids[request.request_id] == expected.token_ids
        assert self.finish_reasons[request.request_id] is expected.finish_reason

    def run(self, max_steps: int = 2000) -> None:
        """Until there is no work left."""
        for _ in range(max_steps):
            if not self._engine.has_work():
                return
            self.step()
        raise AssertionError(f"still working after {max_steps} steps")
