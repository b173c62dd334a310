"""How long a message takes between two of Baton's processes, by its own streams and by gRPC.

    python benchmarks/streams.py [--messages 300] [--gap 0.02]

One server process answers each message at once, by both transports (`protos/server.py`); a client
process sends a `Submit` of 64 tokens every `--gap` seconds, as to an idle cluster, in turns. Both
run uvloop, as gateways and workers do, and read the same clock (CLOCK_MONOTONIC). `cpu` is the
client's processor time per message sent and received, with the pause's timer.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import uvloop

from baton.protos import worker_pb2 as pb
from baton.protos.server import GRPC_OPTIONS, start_worker_server
from baton.protos.stream import StreamCall
from baton.protos.stream_server import CallContext
from baton.protos.worker_pb2_grpc import WorkerServicer, WorkerStub

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "streams.json"
HOST = "127.0.0.1"
# As workers and gateways set it.
SWITCH_INTERVAL_S = 1e-4


class Clocked(WorkerServicer):
    """Answers each message with the time at which it came."""

    async def Connect(
        self, requests: AsyncIterator[pb.GatewayMessage], context: CallContext
    ) -> AsyncIterator[pb.WorkerMessage]:
        async for _ in requests:
            yield pb.WorkerMessage(tokens=pb.TokenBatch(handles=[time.monotonic_ns()]))


async def serve() -> None:
    server = await start_worker_server(Clocked(), HOST, 0)
    print(server.port, server.grpc_port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0.0)


def message() -> pb.GatewayMessage:
    generate = pb.Generate(request_id="chatcmpl-" + 32 * "0", prompt_token_ids=range(64))
    return pb.GatewayMessage(submits=[pb.Submit(handle=1, generate=generate)])


async def measure(call: Any, args: argparse.Namespace) -> dict[str, list[float]]:
    """Microseconds of every message there, back, and of processor time."""
    found: dict[str, list[float]] = {"there": [], "back": [], "cpu": []}
    for _ in range(args.messages):
        cpu_s = time.process_time()
        await asyncio.sleep(args.gap)
        sent_ns = time.monotonic_ns()
        await call.write(message())
        answer = await call.read()
        back_ns = time.monotonic_ns()
        there_ns = answer.tokens.handles[0]
        found["there"].append((there_ns - sent_ns) / 1e3)
        found["back"].append((back_ns - there_ns) / 1e3)
        found["cpu"].append((time.process_time() - cpu_s) * 1e6)
    return found


async def run(args: argparse.Namespace, port: int, grpc_port: int) -> list[dict[str, Any]]:
    from benchmarks.results_file import percentiles

    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.rounds):
        stream: StreamCall[pb.GatewayMessage, pb.WorkerMessage] = await StreamCall.open(
            f"{HOST}:{port}", "Connect", pb.WorkerMessage
        )
        async with grpc.aio.insecure_channel(
            f"{HOST}:{grpc_port}", options=GRPC_OPTIONS
        ) as channel:
            for name, call in (("stream", stream), ("grpc", WorkerStub(channel).Connect())):
                await measure(call, argparse.Namespace(messages=20, gap=args.gap))
                for part, values in (await measure(call, args)).items():
                    found.setdefault((name, part), []).extend(values)
        stream.close()
    return [
        {"transport": name, "part": part, "unit": "us", "us": percentiles(values)}
        for (name, part), values in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gap", type=float, default=0.02, help="seconds before each message")
    parser.add_argument("--server", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if args.server:
            runner.run(serve())
            return
        from benchmarks.results_file import write_results

        command = [sys.executable, __file__, "--server"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            ports = [int(port) for port in server.stdout.readline().split()]
            rows = runner.run(run(args, *ports))
            server.stdin.close()
    write_results(RESULTS, rows, vars(args))
    for row in rows:
        print(row)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
