"""Tokens per second that one gateway process carries from workers to clients.

Stub workers emit one token per stream and step at a fixed pace; clients read raw sockets and only
count. Each row keeps 256 streams running for a while: a stream that ends is followed by a new one,
so TTFT is taken under load. Workers, gateway and clients are processes of their own. On a machine
with few cores they compete, so the figure that carries over to another machine is tokens per
second of the gateway's own CPU time (`tokens_per_core_s`); the wall figures are what was seen.

The `fleet` rows drop HTTP: the consumer is a loop in the gateway's process.

    python benchmarks/gateway_stream.py --model models/baton-tiny
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "results" / "gateway_stream.json"
PROMPT_TOKENS = 64
WARM_UP_S = 2.0


class Child:
    """A process of the benchmark: a line of JSON when it is ready, and it ends with its input."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended early")
        return dict(json.loads(line))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def child(*arguments: str) -> Iterator[Child]:
    running = Child(*arguments)
    try:
        yield running
    finally:
        running.close()


# The gateway's process.


@contextlib.asynccontextmanager
async def _fleet(members_json: str) -> AsyncIterator[Any]:
    from baton.gateway.fleet import Fleet, StaticDirectory
    from baton.protos.types import Member, Role
    from baton.router.config import RouterConfig

    facts = json.loads(members_json)
    members = [Member(**{**member, "role": Role(member["role"])}) for member in facts]
    fleet = Fleet(StaticDirectory(members), RouterConfig(), gateway_id="bench")
    await fleet.start()
    try:
        async with asyncio.timeout(20):
            while sum(view.state == "up" for view in fleet.workers()) < len(members):
                await asyncio.sleep(0.05)
        yield fleet
    finally:
        await fleet.close()


async def serve_gateway(args: argparse.Namespace) -> None:
    """One gateway on an ephemeral port until standard input ends."""
    from baton.gateway.config import GatewayConfig
    from baton.gateway.server import GatewayServer

    async with _fleet(args.members) as fleet:
        config = GatewayConfig(model_dir=args.model, http_port=0, grpc_port=None)
        server = GatewayServer(config, fleet)
        await server.start()
        print(json.dumps({"port": server.http_port}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await server.close(0.0)


async def consume_fleet(args: argparse.Namespace) -> None:
    """The same load without HTTP: streams are consumed where they arrive."""
    from baton.protos.types import GenerateRequest, SamplingParams

    counters = Counters()

    async def stream(fleet: Any, number: int) -> None:
        prompt = list(range(number, number + PROMPT_TOKENS))
        sampling = SamplingParams(max_tokens=args.max_tokens)
        while True:
            started_s = time.perf_counter()
            request = GenerateRequest(
                request_id=str(number), prompt_token_ids=prompt, sampling=sampling
            )
            first = True
            async for chunk in fleet.generate(request):
                if first:
                    counters.ttft_s.append(time.perf_counter() - started_s)
                    first = False
                counters.chunks += 1
                counters.tokens += len(chunk.token_ids)

    async with _fleet(args.members) as fleet:
        tasks = await _staggered(args, lambda number: stream(fleet, number))
        await counters.measure(args.duration_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# The clients' process.


class Counters:
    """What clients see, and this process's CPU time meanwhile."""

    def __init__(self) -> None:
        self.tokens = 0
        self.chunks = 0
        self.ttft_s: list[float] = []

    async def measure(self, duration_s: float) -> None:
        """Warms up, counts for `duration_s` and prints the figures as a line of JSON."""
        await asyncio.sleep(WARM_UP_S)
        print(json.dumps({"warm": True}), flush=True)
        self.tokens = self.chunks = 0
        self.ttft_s.clear()
        started_s, cpu_s = time.perf_counter(), time.process_time()
        await asyncio.sleep(duration_s)
        figures = {
            "tokens": self.tokens,
            "chunks": self.chunks,
            "wall_s": time.perf_counter() - started_s,
            "cpu_s": time.process_time() - cpu_s,
            "ttft_s": self.ttft_s,
        }
        print(json.dumps(figures), flush=True)


class SseClient(asyncio.Protocol):
    """One keep-alive connection that streams one completion after the other and counts events.

    An event is one token or more; an answer has exactly `max_tokens`, which are counted at its
    end (streams are staggered, so what begins before the count and ends in it evens out).
    """

    def __init__(self, payload: bytes, counters: Counters, max_tokens: int) -> None:
        self._payload = payload
        self._counters = counters
        self._max_tokens = max_tokens
        self._transport: asyncio.WriteTransport | None = None
        self._started_s = 0.0
        self._first = True
        self._tail = b""
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        # A marker may lie across two reads: keep the few bytes that could begin one.
        data = self._tail + data
        num_events = data.count(b"data: ")
        if self._first and num_events:
            if b"HTTP/1.1 200" not in data[:64]:
                raise RuntimeError(f"the gateway answered {data[:400]!r}")
            self._counters.ttft_s.append(time.perf_counter() - self._started_s)
            self._first = False
        self._counters.chunks += num_events
        self._tail = data if self._first else data[-5:]
        if data.endswith(b"0\r\n\r\n"):
            # The last event is [DONE], which is no token.
            self._counters.chunks -= 1
            self._counters.tokens += self._max_tokens
            self._tail = b""
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(exc)

    def _ask(self) -> None:
        self._first = True
        self._started_s = time.perf_counter()
        assert self._transport is not None
        self._transport.write(self._payload)


async def run_clients(args: argparse.Namespace) -> None:
    """Opens the connections, measures, and prints what was counted."""
    counters = Counters()
    loop = asyncio.get_running_loop()

    async def connect(number: int) -> None:
        body = json.dumps(
            {
                "prompt": list(range(number, number + PROMPT_TOKENS)),
                "max_tokens": args.max_tokens,
                "stream": True,
                "ignore_eos": True,
            }
        ).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        _, client = await loop.create_connection(
            lambda: SseClient(head + body, counters, args.max_tokens), "127.0.0.1", args.port
        )
        lost = await client.lost
        raise RuntimeError(f"the gateway closed a connection: {lost}")

    tasks = await _staggered(args, connect)
    await counters.measure(args.duration_s)
    failed = [task for task in tasks if task.done()]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(tasks)} streams failed") from (
            failed[0].exception()
        )
    for task in tasks:
        task.cancel()


async def _staggered(args: argparse.Namespace, make: Any) -> list[asyncio.Task[None]]:
    # Spread over the life of one answer, so that later ones do not begin all at once either.
    rng = random.Random(0)
    life_s = args.max_tokens * args.period_ms / 1e3

    async def later(number: int, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await make(number)

    tasks = [
        asyncio.create_task(later(number, rng.uniform(0, life_s))) for number in range(args.streams)
    ]
    await asyncio.sleep(life_s)
    return tasks


# The coordinator.


def measure(args: argparse.Namespace, part: str, period_ms: float) -> dict[str, Any]:
    """One row: `part` is "http" or "fleet"."""
    import psutil

    common = [f"--period-ms={period_ms}", f"--streams={args.streams}"]
    common += [f"--max-tokens={args.max_tokens}", f"--duration-s={args.duration_s}"]
    script = str(ROOT / "benchmarks" / "gateway_stream.py")
    stub = str(ROOT / "benchmarks" / "stub_worker.py")
    with contextlib.ExitStack() as stack:
        stubs = [
            stack.enter_context(
                child(stub, f"--worker-id=d{i}", f"--period-ms={period_ms}", "--vocab-size=1000")
            )
            for i in range(args.workers)
        ]
        members = "--members=" + json.dumps([stub.read() for stub in stubs])
        if part == "fleet":
            load = gateway = stack.enter_context(child(script, "--part=fleet", members, *common))
        else:
            model = f"--model={args.model}"
            gateway = stack.enter_context(child(script, "--part=gateway", members, model))
            port = f"--port={gateway.read()['port']}"
            load = stack.enter_context(child(script, "--part=clients", port, *common))
        load.read()
        process = psutil.Process(gateway.process.pid)
        before = process.cpu_times()
        figures = load.read()
        after = process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    return _row(args, part, period_ms, figures, cpu_s)


def _row(
    args: argparse.Namespace, part: str, period_ms: float, figures: dict[str, Any], cpu_s: float
) -> dict[str, Any]:
    tokens, wall_s = figures["tokens"], figures["wall_s"]
    ttft_ms = sorted(1e3 * value for value in figures["ttft_s"])
    row = {
        "part": part,
        "streams": args.streams,
        "workers": args.workers,
        "period_ms": period_ms,
        "offered_tokens_s": round(args.streams / period_ms * 1e3),
        "tokens_s": round(tokens / wall_s),
        "tokens_per_core_s": round(tokens / cpu_s),
        "chunks_per_core_s": round(figures["chunks"] / cpu_s),
        "tokens_per_chunk": round(tokens / max(figures["chunks"], 1), 2),
        "gateway_cores": round(cpu_s / wall_s, 3),
        "client_cores": None if part == "fleet" else round(figures["cpu_s"] / wall_s, 3),
        # Of the whole machine: over its number of cores, processes waited for each other.
        "load_average_1m": round(os.getloadavg()[0], 1),
        "num_requests": len(ttft_ms),
        "ttft_ms_p50": round(statistics.median(ttft_ms), 1),
        "ttft_ms_p95": round(ttft_ms[int(0.95 * (len(ttft_ms) - 1))], 1),
    }
    print(json.dumps(row), flush=True)
    return row


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Streaming rate of one gateway process.")
    parser.add_argument("--model", default="models/baton-tiny", help="for its tokenizer only")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--duration-s", type=float, default=10.0)
    parser.add_argument("--periods-ms", default="25.6,12.8,6.4", help="a row for each")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--part", choices=("gateway", "clients", "fleet"), help=argparse.SUPPRESS)
    parser.add_argument("--period-ms", type=float, default=12.8, help=argparse.SUPPRESS)
    parser.add_argument("--members", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.part:
        import uvloop

        run = {"gateway": serve_gateway, "clients": run_clients, "fleet": consume_fleet}
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run[args.part](args))
        return
    from benchmarks.results_file import write_results

    periods = [float(period) for period in args.periods_ms.split(",")]
    rows = [measure(args, part, period) for part in ("fleet", "http") for period in periods]
    settings = {key: getattr(args, key) for key in ("model", "streams", "workers", "max_tokens")}
    write_results(args.out, rows, {**settings, "duration_s": args.duration_s})


if __name__ == "__main__":
    main()
