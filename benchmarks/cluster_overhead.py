"""What the cluster adds to the bare engine's time to first token, on an otherwise idle machine.

    python benchmarks/cluster_overhead.py [--requests 40] [--rounds 3]

One request at a time, prompts never seen before. `bare`: an engine in a process of its own, from
`add` to the first token. `local` and `remote`: over HTTP through a running `baton serve`, from
writing the request to the first streamed token; the policy decides where the prompt goes, and
`x-baton-plan` is checked. Prompts are token ids: no side tokenizes or renders a template, as the
bare engine does not. All else is the cluster's: HTTP, JSON, checks, planning, two or four messages
between processes, the engine's thread, text, SSE.

Each request to the cluster is followed by one to the bare engine, in a process that waits beside
it with its model loaded, so that a noisy machine hits both alike. Every side waits `--gap` seconds
before each request, as requests to an idle machine do: an engine that slept is slower than one that
just ran (caches, the core's wake-up). `bare_hot` is the bare engine without the gap, for comparison
with a busy one. Overheads are of medians, against the bare requests of the same cluster's run.
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


def serve_bare() -> None:
    """A line of prompt and gap in, a line of seconds to the first token out."""
    import torch

    from baton.engine.config import EngineConfig
    from baton.engine.engine import Engine
    from baton.protos.types import GenerateRequest, SamplingParams

    torch.set_num_threads(1)
    engine = Engine(EngineConfig(model_dir=str(MODEL)))
    sampling = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    for i, line in enumerate(sys.stdin):
        prompt, gap_s = json.loads(line)
        time.sleep(gap_s)
        start = time.perf_counter()
        engine.add(GenerateRequest(request_id=str(i), prompt_token_ids=prompt, sampling=sampling))
        while not any(output.token_ids for output in engine.step().outputs):
            pass
        print(time.perf_counter() - start, flush=True)
        while engine.has_work():
            engine.step()


class Bare:
    """The bare engine in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--bare"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, prompt: list[int], gap_s: float) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([prompt, gap_s]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class Cluster:
    """One connection to the gateway, a plain socket: an HTTP library's own parsing is the
    client's, not the cluster's.
    """

    def __init__(self, port: int, side: str) -> None:
        self._side = side
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, prompt: list[int], gap_s: float) -> float:
        request = http_request(prompt)
        time.sleep(gap_s)
        start = time.perf_counter()
        self._connection.sendall(request)
        answer = received(self._connection)
        while b"data: {" not in answer:
            answer += received(self._connection)
        ttft_s = time.perf_counter() - start
        while not answer.endswith(b"0\r\n\r\n"):
            answer += received(self._connection)
        plan = answer.partition(b"x-baton-plan: ")[2].split(b"\r\n", 1)[0].decode()
        if ("prefill=local" in plan) != (self._side == "local"):
            raise SystemExit(f"the plan is {plan!r}, but this is the {self._side} side")
        return ttft_s

    def close(self) -> None:
        self._connection.close()


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
    """Below those that the system gives out, one of which another program might get first."""
    while True:
        port = random.randrange(20_000, 29_000)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
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


def measure(port: int, side: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds to the first token, of the cluster and of the bare engine, request by request."""
    samples: dict[str, list[float]] = {"bare_hot": [], f"bare ({side})": [], side: []}
    bare, cluster = Bare(), Cluster(port, side)
    try:
        # The first of each process and connection are not counted.
        for round_ in range(-1, args.rounds):
            args.seed = round_ % 10_000
            for prompt in make_prompts(args):
                found = cluster.ask(prompt, args.gap), bare.ask(prompt, args.gap)
                if round_ >= 0:
                    samples[side].append(found[0])
                    samples[f"bare ({side})"].append(found[1])
        args.seed = args.rounds
        samples["bare_hot"] = [bare.ask(prompt, 0.0) for prompt in make_prompts(args)]
    finally:
        bare.close()
        cluster.close()
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gap", type=float, default=0.02, help="seconds before each request")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        serve_bare()
        return
    samples: dict[str, list[float]] = {"bare_hot": []}
    for side in POLICIES:
        with serving(side) as port:
            found = measure(port, side, args)
        samples["bare_hot"] += found.pop("bare_hot")
        samples |= found
    report(args, samples)


def report(args: argparse.Namespace, samples: dict[str, list[float]]) -> None:
    from benchmarks.results_file import percentiles, write_results

    rows = []
    for name, values in samples.items():
        row = {"measure": f"TTFT, {name}", "ms": percentiles([1e3 * s for s in values])}
        if name in POLICIES:
            over_s = statistics.median(values) - statistics.median(samples[f"bare ({name})"])
            row["over_bare_ms"] = round(1e3 * over_s, 3)
        rows.append({**row, "unit": "ms"})
    settings = {key: getattr(args, key) for key in ("requests", "tokens", "rounds", "gap")}
    write_results(RESULTS, rows, {**settings, "aim_over_bare_ms": 5})
    for row in rows:
        print(row)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
