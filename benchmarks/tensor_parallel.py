"""What tensor parallelism costs and gains: the message of a step, and decode steps by ranks.

    python -m benchmarks.tensor_parallel [--model DIR] [--sizes 1,2] [--steps 50] [--output FILE]

Message rows: from the rows of a decode step on rank 0 to the same rows on another rank, over
loopback between two processes. `send_cpu` is what rank 0's thread computes for it, `arrive` the
time until the other has its rows; both in microseconds. Step rows: milliseconds of a decode step of
the whole engine, each size in turn. Without `--model` only messages are measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from baton.engine.batch import ScheduledRow
from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.engine.parallel.links import RankListener, RankSpec, connect
from baton.engine.parallel.messages import StepReader, StepWriter
from baton.engine.request import Request, RequestState
from baton.protos.types import GenerateRequest, SamplingParams
from benchmarks.results_file import percentiles, write_results

BATCHES: Final = (1, 64, 256)
BLOCK_SIZE: Final = 16
WARM_UPS: Final = 10
PROMPT_TOKENS: Final = 64


class NoRows:
    """Takes in requests and does nothing with them."""

    def add_row(self, request: Request) -> None: ...

    def remove_row(self, request: Request) -> None: ...


def echo(spec: RankSpec) -> None:
    """The other rank: reads steps and tells when it had their rows."""
    link = connect(spec)
    reader = StepReader(NoRows())
    while (message := link.receive_step()) is not None:
        reader.read(message)
        link.tell({"at": time.monotonic_ns()})


def decoding(batch: int) -> list[Request]:
    found = []
    for slot in range(batch):
        generate = GenerateRequest(
            request_id=str(slot),
            prompt_token_ids=list(range(PROMPT_TOKENS)),
            sampling=SamplingParams(seed=0),
        )
        request = Request(generate, arrival=0, state=RequestState.QUEUED, now_s=0.0)
        request.state, request.slot = RequestState.DECODING, slot
        found.append(request)
    return found


def message_row(batch: int, steps: int) -> dict[str, Any]:
    """A decode step of `batch` rows, every one of which needs a block every 16 steps."""
    listener = RankListener("127.0.0.1", bytes(32))
    spec = RankSpec(
        config=EngineConfig(model_dir="unused"),
        rank=1,
        host="127.0.0.1",
        port=listener.port,
        store_port=0,
        token=bytes(32),
        num_threads=1,
    )
    other = multiprocessing.get_context("spawn").Process(target=echo, args=(spec,))
    other.start()
    (link,) = listener.accept([1], lambda: None)
    writer, requests = StepWriter(), decoding(batch)
    for request in requests:
        writer.enter(request)
    sends, arrivals, size = [], [], 0
    for step in range(WARM_UPS + steps):
        for request in requests:
            request.num_computed_tokens = PROMPT_TOKENS + step
            if (step + request.slot) % BLOCK_SIZE == 0:
                request.block_ids.append(step)
        rows = [ScheduledRow(request=r, num_new_tokens=1, samples=True) for r in requests]
        began_ns, cpu_ns = time.monotonic_ns(), time.thread_time_ns()
        message = writer.write(rows)
        link.send_step(message)
        used_ns = time.thread_time_ns() - cpu_ns
        status = link.hear()
        if step >= WARM_UPS and status is not None:
            sends.append(used_ns / 1e3)
            arrivals.append((status["at"] - began_ns) / 1e3)
            size = len(message)
    link.close()
    listener.close()
    other.join()
    return {
        "what": "message",
        "batch": batch,
        "bytes": size,
        "send_cpu_us": percentiles(sends),
        "arrive_us": percentiles(arrivals),
    }


@dataclass(frozen=True)
class StepSettings:
    model: str
    device: str
    steps: int
    random_weights: bool


def step_row(settings: StepSettings, size: int, batch: int) -> dict[str, Any]:
    """Decode steps of a full batch, its prompts already computed."""
    config = EngineConfig(
        model_dir=settings.model,
        device=settings.device,
        tensor_parallel_size=size,
        max_running=batch,
        max_step_tokens=max(512, batch + 1),
        random_weights=settings.random_weights,
        prefix_cache=False,
    )
    engine = Engine(config)
    sampling = SamplingParams(
        temperature=0.0, max_tokens=settings.steps + 2 * WARM_UPS, ignore_eos=True
    )
    for index in range(batch):
        prompt = [7 + index % 50] * PROMPT_TOKENS
        engine.add(
            GenerateRequest(request_id=str(index), prompt_token_ids=prompt, sampling=sampling)
        )
    times: list[float] = []
    while len(times) < WARM_UPS + settings.steps:
        step = engine.step()
        if step.num_decode_tokens == batch:
            times.append(step.duration_s * 1e3)
    engine.close()
    row = {"what": "step", "ranks": size, "batch": batch}
    return {**row, "step_ms": percentiles(times[WARM_UPS:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sizes", default="1,2")
    parser.add_argument("--batches", default="1,8,64")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--output", default="benchmarks/results/tensor_parallel.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [message_row(batch, 10 * options.steps) for batch in BATCHES]
    settings = StepSettings(options.model, options.device, options.steps, options.random_weights)
    if options.model:
        for batch in map(int, options.batches.split(",")):
            for size in map(int, options.sizes.split(",")):
                rows.append(step_row(settings, size, batch))
                print(rows[-1], flush=True)
    write_results(options.output, rows, asdict(settings) | {"sizes": options.sizes})
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
