"""What adapters cost: latency between tokens with 0, 1, 8 and 64 of them, cold loads, kernels.

    export PYTHONPATH=src:.
    python -m benchmarks.lora --device cuda --out benchmarks/results/lora_h100.json
    python -m benchmarks.lora --device cpu --model baton-tiny --batches 8 --adapters 1,4

Random weights and tokens, adapters of rank 16 on all seven linear layers. Ratios are to an engine
without adapters in the same process. `floor_ms` is what a step's adapters must at least add: the
bytes of each distinct one, once, at 3.0 TB/s. vLLM 0.26.0 on one H100 80GB: 9.99 ms without, 11.8
with one adapter and 14.3 with eight at batch 64; 6.55 and 8.30 with one at batch 1.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from baton.engine.adapters.folder import read_adapter
from baton.engine.adapters.projections import EMBEDDING, HEAD, projections
from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.engine.model_info import ModelSpec, read_model_spec
from baton.protos.adapters import AdapterRef
from baton.protos.types import GenerateRequest, SamplingParams
from benchmarks.results_file import percentiles, write_results

ROOT: Final = Path(__file__).resolve().parent.parent
BYTES_PER_MS: Final = 3.0e9
RANK: Final = 16
AIMS: Final = {1: 1.05, 8: 1.10, 64: 1.25}


def save_adapters(folder: Path, spec: ModelSpec, count: int) -> list[AdapterRef]:
    """Distinct adapters that share one file of numbers: the scaling of each is its own."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in projections(spec).items():
        if name not in (EMBEDDING, HEAD):
            for part, size in (("A", (RANK, shape.width)), ("B", (shape.out, RANK))):
                values = torch.randn(size, generator=generator) * 0.01
                tensors[f"base_model.model.{name}.lora_{part}.weight"] = values.bfloat16()
    shared = folder / "adapter_model.safetensors"
    save_file(tensors, shared)
    refs = []
    for number in range(count):
        one = folder / str(number)
        one.mkdir()
        (one / shared.name).hardlink_to(shared)
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16 + number}
        (one / "adapter_config.json").write_text(json.dumps(config))
        adapter_id = read_adapter(str(one)).adapter_id
        refs.append(AdapterRef(name=str(number), adapter_id=adapter_id, path=str(one), rank=RANK))
    return refs


class Bench:
    """One engine at a time, and the rows of all."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        tiny = args.model == "baton-tiny"
        self.model_dir = ROOT / ("models" if tiny else "benchmarks/models") / args.model
        self.spec = read_model_spec(str(self.model_dir))
        self.rows: list[dict[str, Any]] = []
        self.bases: dict[int, float] = {}
        self._random = random.Random(1)
        self._ids = itertools.count()

    @contextmanager
    def engine(self, max_loras: int) -> Iterator[Engine]:
        engine = Engine(
            EngineConfig(
                model_dir=str(self.model_dir),
                device=self.args.device,
                max_running=max(self.args.batches),
                max_step_tokens=8192,
                # two engines share the device: the first is not gone when the second is built
                num_blocks=max(self.args.batches)
                * (self.args.context + 2 * self.args.output)
                // 16,
                max_waiting=4096,
                max_model_len=self.args.context + 2 * self.args.output,
                prefix_cache=False,
                random_weights=True,
                max_loras=max_loras,
                max_cpu_loras=max(max_loras, 1),
                max_lora_rank=RANK,
            )
        )
        try:
            yield engine
        finally:
            engine.close()
            del engine
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def add(self, engine: Engine, adapter_id: str, max_tokens: int) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        prompt = [self._random.randrange(10, 500) for _ in range(self.args.context)]
        name = str(next(self._ids))
        engine.add(
            GenerateRequest(
                request_id=name,
                prompt_token_ids=prompt,
                sampling=sampling,
                adapter_id=adapter_id,
            )
        )

    def decode_ms(self, engine: Engine, batch: int, adapters: Sequence[str]) -> list[float]:
        """Between steps in which all of the batch decode; row i has adapter i % len(adapters)."""
        for row in range(batch):
            self.add(engine, adapters[row % len(adapters)], self.args.output)
        times, before_s = [], 0.0
        for output in steps(engine):
            now_s = time.perf_counter()
            if output.num_decode_tokens == batch and not output.num_prefill_tokens and before_s:
                times.append((now_s - before_s) * 1e3)
            before_s = now_s
        return times

    def itl(self, engine: Engine, measure: str, adapters: Sequence[str]) -> None:
        for batch in self.args.batches:
            if len(adapters) > batch:
                continue
            for adapter_id in adapters:
                # Each is on the device before the clock starts.
                self.add(engine, adapter_id, 2)
            for _ in steps(engine):
                pass
            runs = (self.decode_ms(engine, batch, adapters) for _ in range(self.args.repeats))
            times = list(itertools.chain.from_iterable(runs))
            median = percentiles(times)["p50"]
            base = self.bases.setdefault(batch, median)
            distinct = sum(adapter_id != "" for adapter_id in adapters)
            self.report(
                measure=f"itl batch {batch}, {measure}",
                ms=percentiles(times),
                ratio=round(median / base, 4),
                aim=AIMS.get(distinct),
                floor_ms=round(distinct * self.adapter_bytes(engine) / BYTES_PER_MS, 3),
            )

    def adapter_bytes(self, engine: Engine) -> int:
        loaded = engine.adapters.resident().adapters
        return loaded[0].num_bytes if loaded else 0

    def cold(self, engine: Engine, refs: Sequence[AdapterRef]) -> None:
        """Latency of a batch without adapters, alone and while cold adapters come and go."""
        batch = max(self.args.batches) // 2
        for kind in ("alone", "beside cold loads"):
            stop = threading.Event()
            thread = threading.Thread(target=churn, args=(engine, refs, stop))
            if kind != "alone":
                thread.start()
            times = sorted(
                time_ms
                for _ in range(self.args.repeats)
                for time_ms in self.decode_ms(engine, batch, [""])
            )
            stop.set()
            if kind != "alone":
                thread.join()
            p99 = times[round(0.99 * (len(times) - 1))]
            row = {"measure": f"itl batch {batch}, {kind}", "ms": percentiles(times)}
            self.report(**row, p99_ms=round(p99, 3))

    def report(self, **row: Any) -> None:
        self.rows.append({"model": self.args.model, **row})
        print(json.dumps(self.rows[-1]), flush=True)
        if self.args.out:
            settings = {key: value for key, value in vars(self.args).items() if key != "out"}
            write_results(self.args.out, self.rows, settings)


def steps(engine: Engine) -> Iterator[Any]:
    """Until there is nothing left to do, cold adapters included."""
    while True:
        if engine.has_work():
            yield engine.step()
        elif engine.load().num_waiting:
            time.sleep(1e-4)
        else:
            return


def churn(engine: Engine, refs: Sequence[AdapterRef], stop: threading.Event) -> None:
    """Loads and unloads from another thread, as a server does, until told to stop."""
    for ref in itertools.cycle(refs):
        if stop.is_set():
            return
        engine.adapters.unload(ref.adapter_id)
        engine.adapters.load(ref)


def kernels(bench: Bench) -> None:
    """Shrink and expand of the 8B shape's projections against the bytes that they must move."""
    from benchmarks.lora_kernels import measure

    for row in measure(bench.spec, max(bench.args.batches), bench.args.adapters, RANK):
        bench.report(**row)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="llama8b")
    parser.add_argument("--batches", type=numbers, default=[1, 64])
    parser.add_argument("--adapters", type=numbers, default=[1, 8, 64])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out")
    bench = Bench(parser.parse_args())
    most = max(bench.args.adapters)
    with tempfile.TemporaryDirectory() as folder:
        refs = save_adapters(Path(folder), bench.spec, most)
        with bench.engine(0) as engine:
            bench.itl(engine, "engine without adapters", [""])
        with bench.engine(most) as engine:
            started_s = time.perf_counter()
            for ref in refs:
                engine.adapters.load(ref)
            took_s = time.perf_counter() - started_s
            bench.report(measure="load into CPU memory", s=round(took_s / most, 4), count=most)
            bench.itl(engine, "no row has one", [""])
            for count in bench.args.adapters:
                ids = [ref.adapter_id for ref in refs[:count]]
                bench.itl(engine, f"{count} distinct", ids)
            bench.cold(engine, refs[:2])
            statistics = engine.adapters.resident()
            mean_s = statistics.copy_s / max(statistics.num_copies, 1)
            bench.report(measure="copy to the device", s=round(mean_s, 5))
    if bench.args.device.startswith("cuda"):
        kernels(bench)


if __name__ == "__main__":
    main()
