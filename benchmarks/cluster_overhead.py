"""What the cluster adds to the bare engine's time to first token, on an otherwise idle machine.

    python benchmarks/cluster_overhead.py [--requests 40] [--rounds 3]

One request at a time, prompts never seen before. `bare`: an engine in a process of its own, from
`add` to the first token. `local` and `remote`: over HTTP through a running `baton serve`, from
writing the request to the first streamed token; the policy decides where the prompt goes, and
`x-baton-plan` is checked. Rounds alternate, so that a noisy machine hits all sides.

Every side waits `--gap` seconds before each request, as requests to an idle machine do: an engine
that slept is slower than one that just ran (caches, the core's wake-up). `bare_hot` is the bare
engine without the gap, for comparison with a busy one.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "baton-tiny"
RESULTS = ROOT / "benchmarks" / "results" / "cluster_overhead.json"
POLICIES = {"local": "always_local", "remote": "always_remote"}


def make_prompts(args: argparse.Namespace) -> list[list[int]]:
    rng = random.Random(args.seed)
    return [[rng.randrange(20, 1000) for _ in range(args.tokens)] for _ in range(args.requests)]


def bare_samples(args: argparse.Namespace) -> list[float]:
    import torch

    from baton.engine.config import EngineConfig
    from baton.engine.engine import Engine
    from baton.protos.types import GenerateRequest, SamplingParams

    torch.set_num_threads(1)
    engine = Engine(EngineConfig(model_dir=str(MODEL)))
    sampling = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    samples = []
    for i, prompt in enumerate(make_prompts(args)):
        time.sleep(args.gap)
        start = time.perf_counter()
        engine.add(GenerateRequest(request_id=str(i), prompt_token_ids=prompt, sampling=sampling))
        while not any(output.token_ids for output in engine.step().outputs):
            pass
        samples.append(time.perf_counter() - start)
        while engine.has_work():
            engine.step()
    return samples


def cluster_samples(port: int, side: str, args: argparse.Namespace) -> list[float]:
    """Over a plain socket: an HTTP library's own parsing is the client's, not the cluster's."""
    samples = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for prompt in make_prompts(args):
            request = http_request(prompt)
            time.sleep(args.gap)
            start = time.perf_counter()
            connection.sendall(request)
            answer = connection.recv(1 << 16)
            while b"data: {" not in answer:
                answer += received(connection)
            samples.append(time.perf_counter() - start)
            while not answer.endswith(b"0\r\n\r\n"):
                answer += received(connection)
            plan = answer.partition(b"x-baton-plan: ")[2].split(b"\r\n", 1)[0].decode()
            if ("prefill=local" in plan) != (side == "local"):
                raise SystemExit(f"the plan is {plan!r}, but this is the {side} side")
    return samples


def http_request(prompt: list[int]) -> bytes:
    request = {"model": "baton-tiny", "prompt": prompt, "max_tokens": 2, "stream": True}
    body = json.dumps({**request, "temperature": 0, "ignore_eos": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}x-baton-explain: 1\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def received(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise SystemExit("the gateway closed the connection")
    return data


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(side: str) -> Iterator[int]:
    """A cluster of one prefill and one decode worker with that side's policy; yields its port."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "baton.yaml"
        config.write_text(f"router: {{policy: {POLICIES[side]}}}\n")
        port = free_port()
        command = [sys.executable, "-m", "baton.cluster.cli", "serve", str(MODEL)]
        command += ["--config", str(config), "--port", str(port), "--grpc-port", str(free_port())]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_ready(process, port)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def wait_ready(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("baton serve ended early")
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/baton/workers")
            if len(json.load(connection.getresponse())["workers"]) == 2:
                return
        time.sleep(0.5)
    raise SystemExit("baton serve is not ready in 5 minutes")


def run_bare(args: argparse.Namespace, gap: float) -> list[float]:
    command = [sys.executable, __file__, "--bare", "--seed", str(args.seed), "--gap", str(gap)]
    command += ["--requests", str(args.requests), "--tokens", str(args.tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gap", type=float, default=0.02, help="seconds before each request")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bare", action="store_true")
    args = parser.parse_args()
    if args.bare:
        print(json.dumps(bare_samples(args)))
        return
    samples: dict[str, list[float]] = {"bare_hot": [], "bare": [], "local": [], "remote": []}
    for side in POLICIES:
        with serving(side) as port:
            args.seed = 10_000
            cluster_samples(port, side, args)
            for round_ in range(args.rounds):
                args.seed = round_
                samples["bare_hot"] += run_bare(args, 0.0)
                samples["bare"] += run_bare(args, args.gap)
                samples[side] += cluster_samples(port, side, args)
    report(args, samples)


def report(args: argparse.Namespace, samples: dict[str, list[float]]) -> None:
    from benchmarks.results_file import percentiles, write_results

    bare = statistics.median(samples["bare"])
    rows = [
        {
            "measure": f"TTFT, {side}",
            "ms": percentiles([1e3 * s for s in values]),
            "over_bare_ms": round(1e3 * (statistics.median(values) - bare), 3),
            "unit": "ms",
        }
        for side, values in samples.items()
    ]
    write_results(RESULTS, rows, {**vars(args), "aim_over_bare_ms": 5})
    for row in rows:
        print(row)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
