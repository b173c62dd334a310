"""How much of a hand-over a request waits for: the time from its prompt's end to its decoding.

    python -m benchmarks.kv_exposed [--model benchmarks/models/llama8b] [--prompts 2048,8192,32768]

A prefill and a decode worker, each a process with a whole engine (random weights), handshake, gRPC
and KV connector, behind a gateway's `Fleet` in this process; on one GPU, which they share. One
request at a time, of random tokens. Its prefill ends when the step that sampled the first token
returns in the prefill worker, and its decoding starts when the decode worker's engine takes it
over, every block proved: exposed is what lies between. Both read the machine's monotonic clock.
Reported beside it: how fast the blocks went, and what the decode worker's checks of notices took.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np

from baton.gateway.fleet import Fleet
from baton.gateway.fleet_config import FleetConfig, StaticDirectory
from baton.kvtransfer.connector import Notice, PeerKey
from baton.kvtransfer.session import ReceiveSession
from baton.protos.types import GenerateRequest, Member, Role, SamplingParams
from baton.router.config import RouterConfig
from benchmarks.results_file import merge_results, percentiles

ROOT: Final = Path(__file__).resolve().parent
WARM_UPS: Final = 2
CHECK_REPEATS: Final = 101
PATIENCE_S: Final = 170.0
SAMPLING: Final = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """One push: blocks, pieces of both pools that hang together, and when it was on its way."""

    request_id: str
    num_blocks: int
    num_runs: int
    posted_s: float
    done_s: float


@dataclass(slots=True)
class Seen:
    """What a worker's process saw, by the request's name there. Seconds of the monotonic clock."""

    block_bytes: int = 0
    began_s: dict[str, float] = field(default_factory=dict)
    prefilled_s: dict[str, float] = field(default_factory=dict)
    received_s: dict[str, float] = field(default_factory=dict)
    pushes: list[Pushed] = field(default_factory=list)
    handled_s: dict[str, float] = field(default_factory=dict)
    num_steps: dict[str, int] = field(default_factory=dict)


class WatchedConnector:
    """A connector whose pushes are noted."""

    def __init__(self, connector: Any, seen: Seen) -> None:
        self._connector = connector
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connector, name)

    def push(
        self,
        key: Any,
        local_blocks: Sequence[int],
        remote_blocks: Sequence[int],
        notice: Any,
        done: Callable[[Any], None],
        *,
        skip_tokens: int = 0,
    ) -> None:
        posted_s = time.monotonic()
        num_runs = count_runs(local_blocks, remote_blocks)

        def finish(error: Any) -> None:
            now_s = time.monotonic()
            self._seen.pushes.append(
                Pushed(
                    request_id=notice.request_id,
                    num_blocks=len(local_blocks),
                    num_runs=num_runs,
                    posted_s=posted_s,
                    done_s=now_s,
                )
            )
            done(error)

        self._connector.push(
            key, local_blocks, remote_blocks, notice, finish, skip_tokens=skip_tokens
        )


def count_runs(local: Sequence[int], remote: Sequence[int]) -> int:
    """Descriptors that adjacent blocks leave once they are merged."""
    order = np.argsort(np.array(local), kind="stable")
    here, there = (np.diff(np.array(ids)[order]) for ids in (local, remote))
    return 1 + int(np.sum((here != 1) | (there != 1)))


def watch_engine(engine: Any, seen: Seen) -> None:
    """Notes when prompts begin and end, and when received ones start to decode."""
    add, step, receive = engine.add, engine.step, engine.receive

    def timed_add(request: GenerateRequest, **options: Any) -> None:
        seen.began_s[request.request_id] = time.monotonic()
        add(request, **options)

    def timed_step() -> Any:
        output = step()
        now_s = time.monotonic()
        for progress in output.progress:
            name = progress.request_id
            seen.num_steps[name] = seen.num_steps.get(name, 0) + 1
        for one in output.outputs:
            if one.token_ids:
                seen.prefilled_s.setdefault(one.request_id, now_s)
        return output

    def timed_receive(request_id: str, *rest: Any) -> None:
        seen.received_s[request_id] = time.monotonic()
        receive(request_id, *rest)

    engine.add, engine.step, engine.receive = timed_add, timed_step, timed_receive


def watch_notices(worker: Any, seen: Seen) -> None:
    """Adds up what handling a request's notices takes, what follows from the last one included."""
    handle = worker.on_notice

    def timed(key: Any, notice: Any) -> None:
        began_s = time.perf_counter()
        handle(key, notice)
        took_s = time.perf_counter() - began_s
        name = notice.request_id
        seen.handled_s[name] = seen.handled_s.get(name, 0.0) + took_s

    worker.on_notice = timed


def work(pipe: Connection, role: str, options: argparse.Namespace) -> None:
    """A worker's process: serves until it is asked what it saw."""
    import torch

    from baton.decode_worker.config import DecodeWorkerConfig
    from baton.decode_worker.worker import DecodeWorker
    from baton.engine.config import EngineConfig
    from baton.kvtransfer.factory import make_connector
    from baton.prefill_worker.config import PrefillWorkerConfig
    from baton.prefill_worker.worker import PrefillWorker

    logging.basicConfig(level=logging.WARNING)
    # As in a cluster's workers (cluster/actors.py).
    sys.setswitchinterval(1e-4)
    if options.device == "cpu":
        torch.set_num_threads(1)
    longest = max(options.prompts) + SAMPLING.max_tokens
    is_prefill = role == "prefill"
    engine = EngineConfig(
        model_dir=options.model,
        role=Role(role),
        device=options.device,
        random_weights=True,
        max_running=16,
        max_step_tokens=options.max_step_tokens if is_prefill else 2048,
        max_model_len=longest + 64,
        num_blocks=2 * longest // 16 + 64,
    )
    seen = Seen()

    def connectors(*arguments: Any) -> Any:
        return WatchedConnector(make_connector(*arguments), seen)

    common: dict[str, Any] = {"engine": engine, "secret": "of the benchmark"}
    worker: PrefillWorker | DecodeWorker
    if is_prefill:
        worker = PrefillWorker(PrefillWorkerConfig(**common), connectors=connectors)
    else:
        worker = DecodeWorker(DecodeWorkerConfig(**common))

    async def serve() -> None:
        member = await worker.start()
        seen.block_bytes = worker.host.engine.pool.layout.block_bytes
        watch_engine(worker.host.engine, seen)
        watch_notices(worker, seen)
        pipe.send(member)
        await asyncio.to_thread(pipe.recv)
        pipe.send(seen)

    asyncio.run(serve())


class Process:
    """One worker's process."""

    def __init__(self, role: str, options: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.role = role
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, role, options), daemon=True)
        self._process.start()
        theirs.close()

    def answer(self) -> Any:
        """What the process says next; RuntimeError when it dies or stays silent."""
        if not self._pipe.poll(PATIENCE_S):
            raise RuntimeError(f"the {self.role} worker says nothing for {PATIENCE_S} s")
        try:
            return self._pipe.recv()
        except EOFError as error:
            raise RuntimeError(f"the {self.role} worker died") from error

    def ask(self) -> Seen:
        self._pipe.send("what was seen")
        seen: Seen = self.answer()
        return seen

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A request that ended, between these times, with that many prompt tokens."""

    length: int
    began_s: float
    first_s: float
    second_s: float


async def drive(members: Sequence[Member], options: argparse.Namespace) -> list[Sent]:
    """Requests one after the other, warm-ups left out of what is returned."""
    fleet = Fleet(
        StaticDirectory(members),
        RouterConfig(policy="always_remote"),
        gateway_id="benchmark",
        secret="of the benchmark",
        config=FleetConfig(),
    )
    await fleet.start()
    await fleet.wait_ready(PATIENCE_S)
    rng = random.Random(3)
    sent: list[Sent] = []
    try:
        await linked(fleet, options)
        for length in options.prompts:
            for number in range(WARM_UPS + options.repeats):
                prompt = [rng.randrange(10, options.vocabulary) for _ in range(length)]
                one = await request(fleet, f"{length}-{number}", prompt)
                if number >= WARM_UPS:
                    sent.append(one)
    finally:
        await fleet.close()
    return sent


async def linked(fleet: Fleet, options: argparse.Namespace) -> None:
    """Until a prompt is computed remotely: a fleet is ready before its workers are linked."""
    deadline_s = time.monotonic() + PATIENCE_S
    for number in itertools.count():
        try:
            await request(fleet, f"link-{number}", [10 + number % 100] * 64)
            return
        except RuntimeError:
            if time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(0.2)


async def request(fleet: Fleet, name: str, prompt: list[int]) -> Sent:
    began_s = time.monotonic()
    times: list[float] = []
    prefilled_by = ""
    wanted = GenerateRequest(request_id=name, prompt_token_ids=prompt, sampling=SAMPLING)
    async for chunk in fleet.generate(wanted, timeout_s=PATIENCE_S):
        times += [time.monotonic()] * len(chunk.token_ids)
        if chunk.done is not None:
            prefilled_by = chunk.done.prefilled_by
            if not prefilled_by:
                raise RuntimeError(f"{name} was computed locally: {chunk.done.fallback_reason}")
    return Sent(length=len(prompt), began_s=began_s, first_s=times[0], second_s=times[1])


def rows(sent: Sequence[Sent], prefill: Seen, decode: Seen, device: str) -> list[dict[str, Any]]:
    """Two rows for each length: what is exposed, and what the checks take."""
    found: list[dict[str, Any]] = []
    for length in dict.fromkeys(one.length for one in sent):
        mine = [one for one in sent if one.length == length]
        names = [
            name
            for name, at_s in prefill.began_s.items()
            if any(one.began_s <= at_s <= one.second_s for one in mine)
        ]
        if len(names) != len(mine):
            raise RuntimeError(f"{len(names)} prompts were seen, {len(mine)} sent")
        found += rows_of(length, device, names, prefill, decode, mine)
    return found


def rows_of(
    length: int,
    device: str,
    names: Sequence[str],
    prefill: Seen,
    decode: Seen,
    sent: Sequence[Sent],
) -> list[dict[str, Any]]:
    prefill_s = [prefill.prefilled_s[name] - prefill.began_s[name] for name in names]
    exposed_s = [decode.received_s[name] - prefill.prefilled_s[name] for name in names]
    pushes = [push for push in prefill.pushes if push.request_id in set(names)]
    wire_s = sum(push.done_s - push.posted_s for push in pushes)
    num_bytes = sum(push.num_blocks for push in pushes) * prefill.block_bytes
    last_s = [max(p.done_s for p in pushes if p.request_id == name) for name in names]
    checks_s = sum(
        time_checks(name, [p.num_blocks for p in pushes if p.request_id == name]) for name in names
    )
    handled_s = sum(decode.handled_s[name] for name in names)
    shares = [100 * e / p for e, p in zip(exposed_s, prefill_s, strict=True)]
    count = len(names)
    exposed = {
        "connector": "nixl",
        "measure": f"exposed transfer of a prompt of {length} tokens, of its prefill time",
        "ours": round(sorted(shares)[count // 2], 3),
        "raw": None,
        "unit": "%",
        "device": device,
        "exposed_ms": percentiles([1e3 * s for s in exposed_s]),
        "prefill_ms": percentiles([1e3 * s for s in prefill_s]),
        "ms_from_last_push_done_to_decoding": percentiles(
            [
                1e3 * (decode.received_s[name] - at_s)
                for name, at_s in zip(names, last_s, strict=True)
            ]
        ),
        "ms_between_first_and_second_token": percentiles(
            [1e3 * (one.second_s - one.first_s) for one in sent]
        ),
        "share": percentiles(shares),
        "requests": count,
        "mib_a_prompt": round(num_bytes / count / 2**20, 1),
        "pushes_a_prompt": round(len(pushes) / count, 1),
        "descriptors_a_prompt": round(sum(push.num_runs for push in pushes) / count, 1),
        "prefill_steps": round(sum(prefill.num_steps[name] for name in names) / count, 1),
        "gb_per_s": round(num_bytes / wire_s / 1e9, 2),
    }
    checks = {
        "connector": "nixl",
        "measure": f"checks that prove a receive of {length} tokens, of its transfer time",
        "ours": round(100 * checks_s / wire_s, 3),
        "raw": None,
        "unit": "%",
        "checks_us": round(1e6 * checks_s / count, 1),
        "us_of_whole_notice_handlers": round(1e6 * handled_s / count, 1),
        "transfer_ms": round(1e3 * wire_s / count, 3),
    }
    return [exposed, checks]


def time_checks(name: str, pushes: Sequence[int]) -> float:
    """Seconds that reading and proving the notices of pushes of so many blocks takes, hot."""
    notices = []
    first = 0
    for num_blocks in pushes:
        notices.append(Notice(name, 1, first, num_blocks).to_bytes())
        first += num_blocks
    samples = []
    for _ in range(CHECK_REPEATS):
        session = ReceiveSession(name, epoch=1, first_block=0, num_blocks=first)
        session.first_token()
        began_s = time.perf_counter()
        for data in notices:
            PeerKey.parse("prefill-0@1")
            session.prove(Notice.from_bytes(data))
            proved = session.complete
        samples.append(time.perf_counter() - began_s)
        assert proved
    return sorted(samples)[CHECK_REPEATS // 2]


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "models" / "llama8b"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--prompts", type=numbers, default=[2048, 8192, 32768])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--max-step-tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=100000)
    parser.add_argument("--output", default="benchmarks/results/kv_h100.json")
    options = parser.parse_args()
    processes = [Process(role, options) for role in ("prefill", "decode")]
    try:
        members = [process.answer() for process in processes]
        sent = asyncio.run(drive(members, options))
        prefill, decode = (process.ask() for process in processes)
    finally:
        for process in processes:
            process.kill()
    found = rows(sent, prefill, decode, options.device)
    for row in found:
        print(row, flush=True)
    settings = {
        "model": Path(options.model).name,
        "repeats": options.repeats,
        "max_step_tokens": options.max_step_tokens,
    }
    merge_results(options.output, found, {"exposed": settings}, key=("connector", "measure"))


if __name__ == "__main__":
    main()
