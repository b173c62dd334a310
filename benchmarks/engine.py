"""The engine alone on one GPU: latency between tokens, time to the first, throughput, start-up.

    export PYTHONPATH=src:.
    python -m benchmarks.engine --model llama8b --out benchmarks/results/engine_h100.json
    python -m benchmarks.engine --model qwen06b --measure itl,ttft --batches 1,64
    python -m benchmarks.engine --model llama8b --measure profile --batches 1,64

Random weights, random tokens, greedy, no prefix cache: what vLLM 0.26.0's figures were measured
with, on one H100 80GB. Rows {model, measure, ours, peer, floor, unit} replace those of the same
name in the results file, after each measure, so that a run that is cut short leaves what it had.
The floor is the larger of bytes / 3.0 TB/s and operations / 742 TFLOP/s, both measured there.
"""

from __future__ import annotations

import time

# Before anything is imported: the start of the process, as far as it can be seen from here.
STARTED_S = time.perf_counter()

import argparse  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import random  # noqa: E402
import statistics  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from baton.engine.config import EngineConfig  # noqa: E402
from baton.engine.engine import Engine  # noqa: E402
from baton.engine.runner import Runner  # noqa: E402
from baton.protos.clock import SystemClock  # noqa: E402
from baton.protos.types import GenerateRequest, SamplingParams  # noqa: E402
from benchmarks.results_file import merge_results  # noqa: E402

IMPORTED_S = time.perf_counter()
MODELS = Path(__file__).resolve().parent / "models"
LOADS = ((512, 1024, 128), (256, 128, 512))
CONTEXT, OUTPUT = 1024, 128

# (peer, floor) by model and measure; vLLM 0.26.0 on one H100 80GB, median of its runs.
PEER: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "llama8b": {
        "itl batch 1": (6.55, 5.05),
        "itl batch 8": (7.0, 5.4),
        "itl batch 64": (9.99, 8.05),
        "itl batch 256": (20.8, 17.2),
        "ttft 512": (17.3, 9.7),
        "ttft 2048": (53.0, 40.0),
        "ttft 8192": (216.0, 178.0),
        "ttft 32768": (1190.0, 995.0),
        "throughput 512x1024x128": (3520.0, None),
        "throughput 256x128x512": (17000.0, None),
        "start": (65.0, None),
    },
    "qwen06b": {
        "itl batch 1": (1.73, 0.44),
        "itl batch 8": (2.35, 0.73),
        "itl batch 64": (4.52, 3.06),
        "itl batch 256": (12.6, 11.0),
        "ttft 512": (11.5, 0.65),
        "ttft 2048": (26.5, 3.1),
        "ttft 8192": (35.4, 20.0),
        "ttft 32768": (278.0, 205.0),
        "throughput 512x1024x128": (15000.0, None),
        "throughput 256x128x512": (30000.0, None),
        "start": (107.0, None),
    },
}


@dataclass(frozen=True, slots=True)
class Event:
    """One step: when it was over, its outputs, and how many of them were first tokens."""

    at_s: float
    num_outputs: int
    num_first: int


class Bench:
    """An engine, and the rows measured on it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rows: list[dict[str, Any]] = []
        self.ready_s = 0.0
        self._tag = args.model + ("" if args.kv_cache_dtype == "auto" else " fp8 KV")
        self._random = random.Random(1)
        self._ids = itertools.count()
        config = EngineConfig(
            model_dir=str(MODELS / args.model),
            device=args.device,
            max_running=args.max_running,
            max_step_tokens=args.max_step_tokens,
            max_waiting=4096,
            max_model_len=args.max_model_len,
            prefix_cache=False,
            random_weights=True,
            kv_cache_dtype=args.kv_cache_dtype,
            num_blocks=args.num_blocks,
        )
        clock = SystemClock()
        self._runner = Runner(config, clock)
        self.engine = Engine(config, clock=clock, runner=self._runner)
        self._vocab = self.engine.model.vocab_size

    def tokens(self, count: int) -> list[int]:
        return [self._random.randrange(10, self._vocab - 512) for _ in range(count)]

    def drive(self, prompts: Sequence[list[int]], max_tokens: int) -> tuple[float, list[Event]]:
        """All at once; when they were added, and every step that had outputs."""
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        seen: set[str] = set()
        events: list[Event] = []
        started_s = time.perf_counter()
        for prompt in prompts:
            name = str(next(self._ids))
            self.engine.add(
                GenerateRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling)
            )
        while self.engine.has_work():
            outputs = self.engine.step().outputs
            if outputs:
                names = {output.request_id for output in outputs}
                events.append(Event(time.perf_counter(), len(outputs), len(names - seen)))
                seen |= names
        return started_s, events

    def decode_times(self, batch: int) -> list[float]:
        """Milliseconds between steps in which all of `batch` requests decode; context 1,024 on."""
        _, events = self.drive([self.tokens(CONTEXT) for _ in range(batch)], OUTPUT)
        return [
            (after.at_s - before.at_s) * 1e3
            for before, after in itertools.pairwise(events)
            if before.num_outputs == after.num_outputs == batch
            and not before.num_first
            and not after.num_first
        ]

    def itl(self) -> None:
        for batch in numbers(self.args.batches):
            times = sorted(
                itertools.chain.from_iterable(
                    self.decode_times(batch) for _ in range(self.args.repeats)
                )
            )
            last = len(times) - 1
            p10, p50, p99 = (round(times[round(last * q)], 4) for q in (0.1, 0.5, 0.99))
            self.report(f"itl batch {batch}", p50, "ms", p10=p10, p99=p99, samples=len(times))

    def ttft(self) -> None:
        for length in numbers(self.args.prompts):
            times = []
            for _ in range(6):
                started_s, events = self.drive([self.tokens(length)], 1)
                times.append((events[0].at_s - started_s) * 1e3)
            kept = times[1:]
            self.report(
                f"ttft {length}",
                round(statistics.median(kept), 3),
                "ms",
                least=round(min(kept), 3),
                most=round(max(kept), 3),
            )

    def throughput(self) -> None:
        for count, length, output in LOADS:
            rates = []
            for _ in range(self.args.repeats):
                prompts = [self.tokens(length) for _ in range(count)]
                started_s, events = self.drive(prompts, output)
                rates.append(count * output / (events[-1].at_s - started_s))
            name = f"throughput {count}x{length}x{output}"
            self.report(name, round(statistics.median(rates)), "output tok/s", rates=rates)

    def start(self) -> None:
        """From the process's start to the first token; the interpreter's own start is not seen."""
        started_s, events = self.drive([self.tokens(64)], 1)
        ready_s = self.ready_s - STARTED_S
        stages = {"imports": IMPORTED_S - STARTED_S, **self._runner.stages.seconds}
        self.report(
            "start",
            round(ready_s, 2),
            "s",
            first_token_s=round(ready_s + events[0].at_s - started_s, 2),
            stages={name: round(seconds, 2) for name, seconds in stages.items()},
            kv_tokens=self.engine.pool.num_blocks * self.engine.config.block_size,
        )

    def profile(self) -> None:
        """How long the GPU is idle in decode steps, and what it does in the rest."""
        from torch.profiler import ProfilerActivity, profile

        for batch in numbers(self.args.batches):
            prompts = [self.tokens(CONTEXT) for _ in range(batch)]
            sampling = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
            for prompt in prompts:
                name = str(next(self._ids))
                self.engine.add(
                    GenerateRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling)
                )
            while self.engine.step().num_prefill_tokens:
                pass
            for _ in range(8):
                self.engine.step()
            with profile(activities=[ProfilerActivity.CUDA]) as found:
                for _ in range(20):
                    self.engine.step()
                torch.cuda.synchronize()
            while self.engine.has_work():
                self.engine.step()
            self._report_profile(f"gpu idle batch {batch}", "% of decode steps", 20, found)

    def prefill_profile(self) -> None:
        """The same of the one step that computes a prompt."""
        from torch.profiler import ProfilerActivity, profile

        for length in numbers(self.args.prompts):
            self.drive([self.tokens(length)], 1)
            with profile(activities=[ProfilerActivity.CUDA]) as found:
                self.drive([self.tokens(length)], 1)
                torch.cuda.synchronize()
            self._report_profile(f"gpu idle prompt {length}", "% of prefill", 1, found)

    def _report_profile(self, measure: str, unit: str, num_steps: int, found: Any) -> None:
        spans = sorted(
            (event.time_range.start, event.time_range.end, event.name)
            for event in found.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        )
        busy = 0.0
        reached = spans[0][0]
        by_name: dict[str, float] = {}
        for start, end, name in spans:
            busy += max(0.0, end - max(start, reached))
            reached = max(reached, end)
            by_name[name] = by_name.get(name, 0.0) + end - start
        total = reached - spans[0][0]
        top = sorted(by_name.items(), key=lambda item: -item[1])[:12]
        self.report(
            measure,
            round(100 * (1 - busy / total), 2),
            unit,
            step_us=round(total / num_steps, 1),
            kernels_a_step=round(len(spans) / num_steps),
            top={name[:60]: round(us / num_steps, 1) for name, us in top},
        )

    def report(self, measure: str, ours: float, unit: str, **more: Any) -> None:
        peer, floor = PEER.get(self.args.model, {}).get(measure, (None, None))
        row = {"model": self._tag, "measure": measure, "ours": ours, "peer": peer, "floor": floor}
        print(json.dumps({**row, "unit": unit, **more}), flush=True)
        self.rows.append({**row, "unit": unit, **more})
        if self.args.out:
            merge_results(self.args.out, self.rows, vars(self.args), key=("model", "measure"))


def numbers(text: str) -> Iterator[int]:
    return (int(part) for part in text.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama8b", help="a folder of benchmarks/models")
    parser.add_argument("--measure", default="start,itl,ttft,throughput")
    parser.add_argument("--batches", default="1,8,64,256")
    parser.add_argument("--prompts", default="512,2048,8192,32768")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-running", type=int, default=512)
    parser.add_argument("--max-step-tokens", type=int, default=16384)
    parser.add_argument("--max-model-len", type=int, default=40960)
    parser.add_argument("--num-blocks", type=int)
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--out")
    args = parser.parse_args()
    bench = Bench(args)
    bench.ready_s = time.perf_counter()
    measures = {
        "start": bench.start,
        "itl": bench.itl,
        "ttft": bench.ttft,
        "throughput": bench.throughput,
        "profile": bench.profile,
        "prefill_profile": bench.prefill_profile,
    }
    wanted = args.measure.split(",")
    if unknown := set(wanted) - measures.keys():
        parser.error(f"--measure {sorted(unknown)}: choose from {', '.join(measures)}")
    if "start" in wanted:
        bench.start()
    bench.drive([bench.tokens(64) for _ in range(4)], 8)
    bench.drive([bench.tokens(min(1500, args.max_model_len - 8))], 4)
    for name in wanted:
        if name != "start":
            measures[name]()
    bench.engine.close()


if __name__ == "__main__":
    main()
