"""What the simulator predicts beside what a real cluster on this machine does.

    python -m benchmarks.simulator_validation [--requests 40]

Starts `baton serve` (one prefill and one decode worker, the model that ships) with
`fleet.model_times`, and sends a varied load from which the gateway learns its workers' times.
Another draw of that load calibrates the simulator for a machine whose cores client, gateway and
both workers share, which workers' own samples of steps do not show: requests one by one tell what
each takes longer outside of steps, and by how much steps are longer. Then come three other
workloads. The simulator gets times, calibration and the same workloads, arrival by arrival, and its
mean time to first token is compared with the measured one.

Wants a quiet machine: what else runs slows the cluster but not the prediction. The load average is
in the results.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
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
from statistics import mean
from typing import Any

from baton.cluster.bench.load import Run, Target, find_target, offer
from baton.cluster.bench.workload import Job, JobMaker, Span, Workload
from baton.cluster.client import Endpoint
from baton.protos.hashing import block_hashes
from baton.router.config import RouterConfig
from baton.router.times import ModelTimes, WorkerTimes
from baton.simulator.config import SimConfig
from baton.simulator.request import Trace, TraceRequest
from baton.simulator.simulation import Simulation
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
    """One workload as it went. ttfts_s: in the order of arrival; None of requests that failed."""

    name: str
    workload: Workload
    ttfts_s: tuple[float | None, ...]
    num_late: int

    @property
    def served_s(self) -> list[float]:
        """Of those that were answered."""
        return [each for each in self.ttfts_s if each is not None]


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
    with tempfile.TemporaryDirectory() as folder:
        times_file = Path(folder) / "times.json"
        with serving(times_file) as port:
            target = find_target(Endpoint(url=f"http://127.0.0.1:{port}", api_key=""), None)
            measure("learning", target, learning)
            together = measure("calibration", target, replace(learning, seed=3))
            measured = [
                measure(name, target, workload)
                for name, workload in workloads(options.requests).items()
            ]
        times = ModelTimes.from_json(times_file.read_text(encoding="utf-8"))
    overhead_s, slowdown = calibrate(together, target, times)
    slower = slowed(times, slowdown)
    rows = [row(each, mean(ttfts_s(each, target, slower)) + overhead_s) for each in measured]
    for found, each in zip(rows, measured, strict=True):
        plain_s = mean(ttfts_s(each, target, times))
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


def calibrate(measured: Measured, target: Target, times: ModelTimes) -> tuple[float, float]:
    """Seconds outside of steps, and the factor of all steps, by which single requests' predicted
    times are nearest to the measured ones (least squared logarithm of their ratio)."""
    found = []
    for slowdown in (1 + step / 20 for step in range(41)):
        predicted = ttfts_s(measured, target, slowed(times, slowdown))
        pairs = [(p, m) for p, m in zip(predicted, measured.ttfts_s, strict=True) if m]
        for overhead_s in (step / 400 for step in range(81)):
            error = sum(math.log((p + overhead_s) / m) ** 2 for p, m in pairs)
            found.append((error, overhead_s, slowdown))
    _, overhead_s, slowdown = min(found)
    return overhead_s, slowdown


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
    ordered = sorted(run.samples, key=lambda sample: sample.start_s)
    found = tuple(s.first_s - s.start_s if s.first_s and not s.error else None for s in ordered)
    measured = Measured(name=name, workload=workload, ttfts_s=found, num_late=run.num_late)
    if not measured.served_s:
        raise SystemExit(f"{name}: no request was answered")
    print(f"{name}: mean TTFT {1e3 * mean(measured.served_s):.1f} ms", flush=True)
    return measured


def ttfts_s(measured: Measured, target: Target, times: ModelTimes) -> list[float]:
    """Of the same requests through the simulator."""
    maker = JobMaker(measured.workload, target.vocabulary)
    requests = [
        _request(index, at_s, maker.next())
        for index, at_s in enumerate(measured.workload.arrivals())
    ]
    trace = Trace(measured.name, BLOCK_TOKENS, tuple(requests))
    config = SimConfig(
        prefill=1,
        decode=1,
        times=times,
        router=RouterConfig(),
        kv_capacity_tokens=(256 << 20) // times.kv_bytes_per_token,
        max_running=MAX_RUNNING,
        max_tokens=64,
    )
    simulation = Simulation(trace, config)
    simulation.run()
    return [job.first_s - job.request.arrival_s for job in simulation.jobs]


def row(measured: Measured, predicted_s: float) -> dict[str, Any]:
    """One workload's result."""
    measured_s = mean(measured.served_s)
    return {
        "workload": measured.name,
        "num_ok": len(measured.served_s),
        "num_late": measured.num_late,
        "measured_ttft_mean_ms": round(1e3 * measured_s, 2),
        "predicted_ttft_mean_ms": round(1e3 * predicted_s, 2),
        "error": round(predicted_s / measured_s - 1, 4),
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
