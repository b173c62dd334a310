"""What the simulator predicts beside what a real cluster on this machine does.

    python -m benchmarks.simulator_validation [--requests 40]

Starts `baton serve` (one prefill and one decode worker, the model that ships) with
`fleet.model_times`, and sends a varied load from which the gateway learns its workers' times. Two
more loads calibrate the simulator: single requests, for the fixed cost of a request outside of
engines, and another draw of the varied load, for how much longer everything takes while client,
gateway and both workers share the cores, which workers' own samples of steps do not show. Then
come three other workloads. The simulator gets times, both calibrations and the same workloads,
arrival by arrival, and its mean time to first token is compared with the measured one.

Wants a quiet machine: what else runs slows the cluster but not the prediction. The load average is
in the results.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from baton.cluster.bench.load import Run, Target, find_target, offer
from baton.cluster.bench.workload import Job, JobMaker, Span, Workload
from baton.cluster.client import Endpoint
from baton.protos.hashing import block_hashes
from baton.router.config import RouterConfig
from baton.router.times import ModelTimes, WorkerTimes
from baton.simulator.config import SimConfig
from baton.simulator.request import Trace, TraceRequest
from baton.simulator.simulation import simulate
from benchmarks.results_file import write_results

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "baton-tiny"
OUTPUT = ROOT / "benchmarks" / "results" / "simulator_validation.json"
BLOCK_TOKENS = 16
# `baton serve`'s defaults: EngineConfig's 256 MiB of KV, in tokens, and its batch.
MAX_RUNNING = 64
READY_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One workload as it went. Seconds."""

    name: str
    workload: Workload
    ttft_mean_s: float
    num_ok: int
    num_late: int


def workloads(num_requests: int) -> dict[str, Workload]:
    """Three loads of different kinds; rates are those that two CPU cores can serve."""
    return {
        "short": Workload(
            input_len=Span(low=32, high=256),
            output_len=Span(low=16, high=64),
            num_requests=num_requests,
            request_rate=4.0,
            seed=11,
        ),
        "long": Workload(
            input_len=Span(low=512, high=2048),
            output_len=Span(low=8, high=32),
            num_requests=num_requests,
            request_rate=1.5,
            seed=12,
        ),
        "shared_prefix": Workload(
            input_len=Span(low=256, high=1024),
            output_len=Span(low=16, high=48),
            num_requests=num_requests,
            request_rate=3.0,
            shared_prefix=0.6,
            seed=13,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=40, help="of each load")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    learning = Workload(
        input_len=Span(low=16, high=2048),
        output_len=Span(low=8, high=64),
        num_requests=options.requests,
        request_rate=2.0,
        seed=1,
    )
    single = replace(learning, num_requests=20, request_rate=None, concurrency=1, seed=2)
    with tempfile.TemporaryDirectory() as folder:
        times_file = Path(folder) / "times.json"
        with serving(times_file) as port:
            target = find_target(Endpoint(url=f"http://127.0.0.1:{port}", api_key=""), None)
            measure("learning", target, learning)
            alone = measure("single", target, single)
            together = measure("calibration", target, replace(learning, seed=3))
            measured = [
                measure(name, target, workload)
                for name, workload in workloads(options.requests).items()
            ]
        times = ModelTimes.from_json(times_file.read_text(encoding="utf-8"))
    overhead_s = max(0.0, alone.ttft_mean_s - mean_ttft_s(alone, target, times, 0.0))
    slowdown = calibrate(together, target, times, overhead_s)
    slower = slowed(times, slowdown)
    rows = [row(each, mean_ttft_s(each, target, slower, overhead_s)) for each in measured]
    for found, each in zip(rows, measured, strict=True):
        plain_s = mean_ttft_s(each, target, times, overhead_s)
        found["uncalibrated_ttft_mean_ms"] = round(1e3 * plain_s, 2)
        print(found)
    settings = {
        "requests": options.requests,
        "model": MODEL.name,
        "overhead_s": round(overhead_s, 6),
        "slowdown": round(slowdown, 4),
        "load_average": os.getloadavg(),
        "times": times.to_json(),
    }
    write_results(options.output, rows, settings)


def calibrate(measured: Measured, target: Target, times: ModelTimes, overhead_s: float) -> float:
    """By how much all times have to grow for the measured mean; at least 1, at most 4."""
    low, high = 1.0, 4.0
    for _ in range(12):
        middle = (low + high) / 2
        mean_s = mean_ttft_s(measured, target, slowed(times, middle), overhead_s)
        low, high = (middle, high) if mean_s < measured.ttft_mean_s else (low, middle)
    return low


def slowed(times: ModelTimes, by: float) -> ModelTimes:
    """Every step and every push takes so many times as long."""
    return replace(
        times,
        prefill_pool=_slowed_worker(times.prefill_pool, by),
        decode_pool=_slowed_worker(times.decode_pool, by),
        transfer=replace(
            times.transfer,
            fixed_s=by * times.transfer.fixed_s,
            per_byte_s=by * times.transfer.per_byte_s,
        ),
    )


def _slowed_worker(times: WorkerTimes, by: float) -> WorkerTimes:
    prefill, decode = times.prefill, times.decode
    return WorkerTimes(
        prefill=replace(
            prefill,
            fixed_s=by * prefill.fixed_s,
            per_token_s=by * prefill.per_token_s,
            per_pair_s=by * prefill.per_pair_s,
            per_row_s=by * prefill.per_row_s,
        ),
        decode=replace(
            decode,
            fixed_s=by * decode.fixed_s,
            per_row_s=by * decode.per_row_s,
            per_kv_token_s=by * decode.per_kv_token_s,
        ),
    )


def measure(name: str, target: Target, workload: Workload) -> Measured:
    """Runs the workload against the cluster."""
    run = Run()
    asyncio.run(offer(target, workload, run))
    ttfts = [s.first_s - s.start_s for s in run.samples if not s.error and s.first_s]
    if not ttfts:
        raise SystemExit(f"{name}: no request was answered")
    mean_s = sum(ttfts) / len(ttfts)
    print(f"{name}: mean TTFT {1e3 * mean_s:.1f} ms of {len(ttfts)}", flush=True)
    return Measured(
        name=name,
        workload=workload,
        ttft_mean_s=mean_s,
        num_ok=len(ttfts),
        num_late=run.num_late,
    )


def mean_ttft_s(measured: Measured, target: Target, times: ModelTimes, overhead_s: float) -> float:
    """Of the same requests through the simulator. A load without a rate is sent one by one."""
    workload, maker = measured.workload, JobMaker(measured.workload, target.vocabulary)
    requests = []
    for index, at_s in enumerate(workload.arrivals()):
        job = maker.next()
        # Far enough apart that none meets another.
        arrival_s = at_s if workload.request_rate else 1000.0 * index
        requests.append(_request(index, arrival_s, job))
    trace = Trace(measured.name, BLOCK_TOKENS, tuple(requests))
    kv_tokens = (256 << 20) // times.kv_bytes_per_token
    config = SimConfig(
        prefill=1,
        decode=1,
        times=times,
        router=RouterConfig(),
        overhead_s=overhead_s,
        kv_capacity_tokens=kv_tokens,
        max_running=MAX_RUNNING,
        max_tokens=64,
    )
    mean_s = simulate(trace, config).ttft_mean
    assert mean_s is not None
    return mean_s


def row(measured: Measured, predicted_s: float) -> dict[str, Any]:
    """One workload's result."""
    return {
        "workload": measured.name,
        "num_ok": measured.num_ok,
        "num_late": measured.num_late,
        "measured_ttft_mean_ms": round(1e3 * measured.ttft_mean_s, 2),
        "predicted_ttft_mean_ms": round(1e3 * predicted_s, 2),
        "error": round(predicted_s / measured.ttft_mean_s - 1, 4),
    }


def _request(index: int, arrival_s: float, job: Job) -> TraceRequest:
    if isinstance(job.prompt, str):
        raise SystemExit("the server has no /tokenize: prompt lengths would be guesses")
    hashes = tuple(block_hashes(job.prompt, BLOCK_TOKENS))
    return TraceRequest(index, arrival_s, len(job.prompt), job.output_len, hashes)


@contextlib.contextmanager
def serving(times_file: Path) -> Iterator[int]:
    """A cluster of one prefill and one decode worker; its port. Its times are there afterwards."""
    config = times_file.with_name("baton.yaml")
    config.write_text(f"fleet: {{model_times: {times_file}}}\n")
    port = _free_port()
    command = [sys.executable, "-m", "baton.cluster.cli", "serve", str(MODEL)]
    command += ["--config", str(config), "--port", str(port), "--grpc-port", str(_free_port())]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_ready(process, port)
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)


def _wait_ready(process: subprocess.Popen[bytes], port: int) -> None:
    end_s = time.monotonic() + READY_S
    url = f"http://127.0.0.1:{port}/baton/workers"
    while time.monotonic() < end_s:
        if process.poll() is not None:
            raise SystemExit(f"baton serve ended with {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if len(json.load(answer)["workers"]) == 2:
                return
        time.sleep(1.0)
    raise SystemExit(f"baton serve was not ready within {READY_S:g} s")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
