"""Kills workers and cuts links under load: every request ends rightly, transfers come back.

    python -m benchmarks.kv_restarts [--loops 100] [--connector nixl] [--output FILE] [--go-on]

Two prefill and two decode workers, each a process of its own, behind a gateway's `Fleet` in this
one, which keeps greedy requests under way whose answers are known. Each loop kills a prefill worker
(SIGKILL), kills a decode worker, or cuts every KV connection of a prefill worker (its sockets are
shut down inside the process; its gRPC streams stand). A killed worker is replaced by a process with
another incarnation, forked from one that has everything imported; nothing else is restarted.
`--go-on` adds to the loops that the file has. Reported are the seconds from the kill or cut to
the first good transfer after it, and to the first one of the replacement or of the cut worker,
counted from when it can be reached. A wrong token, a failed request or a survivor that is gone ends
the run with an error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import random
import socket
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from baton.engine.config import EngineConfig
from baton.gateway.fleet import Fleet
from baton.gateway.fleet_config import FleetConfig, StaticDirectory
from baton.protos.types import GenerateRequest, Member, Role, SamplingParams
from baton.router.config import RouterConfig
from benchmarks.results_file import percentiles, write_results

MODEL: Final = Path(__file__).resolve().parent.parent / "models" / "baton-tiny"
SAMPLING: Final = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
CONCURRENCY: Final = 4
PATIENCE_S: Final = 60.0
# What takes seconds to import.
IMPORTED: Final = ["baton.engine.engine", "baton.engine.runner", "baton.kvtransfer.factory"]
KINDS: Final = ("prefill killed", "decode killed", "link cut")


def engine_config(role: Role) -> EngineConfig:
    return EngineConfig(
        model_dir=str(MODEL), role=role, num_blocks=512, max_running=16, max_step_tokens=128
    )


def work(pipe: Connection, role: str, worker_id: str, connector: str) -> None:
    """A worker's process: waits for its turn to start, then serves until it is killed."""
    import torch

    from baton.decode_worker.config import DecodeWorkerConfig
    from baton.decode_worker.worker import DecodeWorker
    from baton.prefill_worker.config import PrefillWorkerConfig
    from baton.prefill_worker.worker import PrefillWorker

    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    worker: PrefillWorker | DecodeWorker
    common: dict[str, Any] = {"worker_id": worker_id, "connector": connector, "secret": "shared"}
    if role == "prefill":
        engine = engine_config(Role.PREFILL)
        worker = PrefillWorker(PrefillWorkerConfig(engine=engine, **common))
    else:
        engine = engine_config(Role.DECODE)
        worker = DecodeWorker(DecodeWorkerConfig(engine=engine, prefill_timeout_s=10.0, **common))
    pipe.send("imported")
    pipe.recv()

    async def serve() -> None:
        pipe.send(await worker.start())
        while True:
            grpc_ports = await asyncio.to_thread(pipe.recv)
            pipe.send(cut_links(grpc_ports))

    asyncio.run(serve())


def cut_links(grpc_ports: set[int]) -> int:
    """Shuts down every TCP connection of this process that is not gRPC's; how many."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            ports = {connection.getsockname()[1], connection.getpeername()[1]}
            if not ports & grpc_ports:
                connection.shutdown(socket.SHUT_RDWR)
                count += 1
    return count


class WorkerProcess:
    """One process; `start` when it is needed."""

    def __init__(self, role: str, worker_id: str, connector: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        self._pipe, theirs = context.Pipe()
        self.role = role
        self.worker_id = worker_id
        self.process = context.Process(
            target=work, args=(theirs, role, worker_id, connector), daemon=True
        )
        self.process.start()
        theirs.close()

    async def imported(self) -> None:
        """Until it can be started at once."""
        await asyncio.to_thread(self._pipe.recv)

    async def start(self) -> Member:
        self._pipe.send("go")
        self.member: Member = await asyncio.to_thread(self._pipe.recv)
        return self.member

    async def cut(self, grpc_ports: set[int]) -> int:
        self._pipe.send(grpc_ports)
        count: int = await asyncio.to_thread(self._pipe.recv)
        return count

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@dataclass(slots=True)
class Ended:
    """A request that ended rightly."""

    submitted_s: float
    ended_s: float
    prefilled_by: str
    decoded_by: str
    replays: int


@dataclass
class Load:
    """Requests whose answers are known, always some of them under way."""

    fleet: Fleet
    prompts: list[list[int]]
    expected: list[list[int]]
    ended: list[Ended] = field(default_factory=list)
    _number: int = 0

    async def keep_going(self, seed: int) -> None:
        rng = random.Random(seed)
        while True:
            self._number += 1
            await self._request(rng.randrange(len(self.prompts)), self._number)

    async def _request(self, which: int, number: int) -> None:
        began_s = time.monotonic()
        request = GenerateRequest(
            request_id=f"r{number}",
            prompt_token_ids=self.prompts[which],
            sampling=SAMPLING,
            cache_salt=f"{number}".encode(),
        )
        tokens: list[int] = []
        prefilled_by = ""
        generation = self.fleet.generate(request, timeout_s=PATIENCE_S)
        async for chunk in generation:
            tokens += chunk.token_ids
            if chunk.done is not None:
                prefilled_by = chunk.done.prefilled_by
        if tokens != self.expected[which]:
            raise AssertionError(f"request {number}: {tokens}, not {self.expected[which]}")
        self.ended.append(
            Ended(
                began_s,
                time.monotonic(),
                prefilled_by,
                generation.worker_id,
                generation.num_replays,
            )
        )

    async def first_transfer_s(self, since_s: float, worker_id: str = "") -> float:
        """Seconds until a request, submitted after `since_s`, ended whose KV was moved, by or to
        that worker if one is named.
        """
        while True:
            for one in reversed(self.ended):
                involved = not worker_id or worker_id in (one.prefilled_by, one.decoded_by)
                if one.submitted_s >= since_s and one.prefilled_by and involved:
                    return one.ended_s - since_s
            if time.monotonic() - since_s > PATIENCE_S:
                raise AssertionError(f"no good transfer of {worker_id or 'anybody'}")
            await asyncio.sleep(0.02)


@dataclass
class Cluster:
    """The processes, and spares that wait for their turn."""

    connector: str
    workers: dict[str, WorkerProcess] = field(default_factory=dict)
    directory: StaticDirectory = field(default_factory=lambda: StaticDirectory(()))
    num_cut: int = 0

    async def start(self) -> None:
        for worker_id in ("prefill-0", "prefill-1", "decode-0", "decode-1"):
            self.workers[worker_id] = self.spawn(worker_id)
        await asyncio.gather(*(worker.imported() for worker in self.workers.values()))
        await asyncio.gather(*(worker.start() for worker in self.workers.values()))
        self.publish()

    def spawn(self, worker_id: str) -> WorkerProcess:
        return WorkerProcess(worker_id.partition("-")[0], worker_id, self.connector)

    def publish(self) -> None:
        self.directory.set_members([worker.member for worker in self.workers.values()])

    async def harm(self, kind: str, worker_id: str, load: Load) -> dict[str, float]:
        """One kill or cut, and the seconds until transfers came back."""
        others = {w.worker_id: w.process.pid for w in self.workers.values()}
        if kind == "link cut":
            ports = {int(w.member.address.rpartition(":")[2]) for w in self.workers.values()}
            began_s = ready_s = time.monotonic()
            self.num_cut += await self.workers[worker_id].cut(ports)
            after_s = await load.first_transfer_s(began_s)
        else:
            spare = self.spawn(worker_id)
            await spare.imported()
            began_s = time.monotonic()
            self.workers[worker_id].kill()
            after_s = await load.first_transfer_s(began_s)
            await spare.start()
            self.workers[worker_id] = spare
            self.publish()
            ready_s = time.monotonic()
            others[worker_id] = spare.process.pid
        own_s = await load.first_transfer_s(ready_s, worker_id)
        for worker in self.workers.values():
            if not worker.process.is_alive() or worker.process.pid != others[worker.worker_id]:
                raise AssertionError(f"{worker.worker_id} is gone")
        return {"after_s": after_s, "own_s": own_s}

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.kill()


def known_answers() -> tuple[list[list[int]], list[list[int]]]:
    """Prompts, and what an engine without a cluster answers."""
    from baton.engine.engine import Engine

    rng = random.Random(7)
    prompts = [[rng.randrange(20, 700) for _ in range(n)] for n in (40, 100, 200, 300)]
    engine = Engine(engine_config(Role.BOTH))
    answers: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
    for i, prompt in enumerate(prompts):
        request = GenerateRequest(request_id=str(i), prompt_token_ids=prompt, sampling=SAMPLING)
        engine.add(request)
    while engine.has_work():
        for output in engine.step().outputs:
            answers[output.request_id].extend(output.token_ids)
    engine.close()
    return prompts, list(answers.values())


async def run(connector: str, numbers: range, limit_s: float) -> list[dict[str, Any]]:
    prompts, expected = known_answers()
    cluster = Cluster(connector)
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    end_s = time.monotonic() + limit_s
    try:
        await cluster.start()
        fleet = Fleet(
            cluster.directory,
            RouterConfig(policy="always_remote"),
            gateway_id="benchmark",
            secret="shared",
            config=FleetConfig(poll_s=0.1, max_replays=10, no_worker_wait_s=PATIENCE_S),
        )
        await fleet.start()
        await fleet.wait_ready(PATIENCE_S)
        load = Load(fleet, prompts, expected)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(load.keep_going(i)) for i in range(CONCURRENCY)]
            await load.first_transfer_s(time.monotonic())
            for loop in numbers:
                if time.monotonic() > end_s:
                    break
                kind = KINDS[loop % 3]
                role = "decode" if kind == "decode killed" else "prefill"
                figures = await cluster.harm(kind, f"{role}-{loop // 3 % 2}", load)
                found[kind].append(figures)
                print(f"{loop + 1:3} {kind:15} {figures}", flush=True)
            for task in tasks:
                task.cancel()
        await fleet.close()
    finally:
        cluster.stop()
    return [row(connector, kind, figures, load, cluster) for kind, figures in found.items()]


def row(
    connector: str, kind: str, figures: list[dict[str, float]], load: Load, cluster: Cluster
) -> dict[str, Any]:
    return {
        "connector": connector,
        "measure": f"{kind}: seconds to the first good transfer",
        "loops": len(figures),
        **{
            f"{name}_samples": [round(f[f"{name}_s"], 3) for f in figures]
            for name in ("after", "own")
        },
        "unit": "s",
        "requests_in_the_run": len(load.ended),
        "replayed": sum(one.replays > 0 for one in load.ended),
        "moved": sum(bool(one.prefilled_by) for one in load.ended),
        "connections_cut": cluster.num_cut,
    }


def joined(row: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """With the loops of an earlier run, and what the samples of both come to."""
    row = dict(row)
    for name, value in (before or {}).items():
        if isinstance(value, int | list):
            row[name] = value + row[name]
    for name in ("after", "own"):
        samples = row[f"{name}_samples"]
        row[name] = percentiles(samples) | {"max": max(samples)} if samples else {}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="Kills and cuts under load.")
    parser.add_argument("--loops", type=int, default=100)
    parser.add_argument("--limit-s", type=float, default=3600.0)
    parser.add_argument("--connector", default="nixl", choices=["nixl", "nccl"])
    parser.add_argument("--output", default="benchmarks/results/kv_restarts.json")
    parser.add_argument("--go-on", action="store_true")
    arguments = parser.parse_args()
    # Only what goes through sockets can be cut from inside; shared memory cannot.
    os.environ.setdefault("UCX_TLS", "tcp,self")
    logging.disable(logging.ERROR)
    there = Path(arguments.output)
    before = json.loads(there.read_text())["rows"] if arguments.go_on and there.exists() else []
    known = {(row["connector"], row["measure"]): row for row in before}
    done = sum(row["loops"] for row in before if row["connector"] == arguments.connector)
    numbers = range(done, done + arguments.loops)
    found = asyncio.run(run(arguments.connector, numbers, arguments.limit_s))
    rows = [joined(row, known.get((row["connector"], row["measure"]))) for row in found]
    rows += [row for row in before if row["connector"] != arguments.connector]
    settings = {"concurrency": CONCURRENCY, "ucx_tls": "tcp,self"}
    write_results(arguments.output, rows, settings)
    for found in rows:
        print(found)


if __name__ == "__main__":
    main()
