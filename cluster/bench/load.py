"""Offers a workload to a server and collects what every request did."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field

from baton.cluster.bench.wire import Pool, Sample, encode_request
from baton.cluster.bench.workload import Job, JobMaker, Vocabulary, Workload
from baton.cluster.client import Endpoint, model_name, post_json
from baton.protos.errors import BatonError

PATH = "/v1/completions"
# Common words, so that a prompt is ordinary text for every tokenizer.
TEXT = (
    "the of and to in a is that for it as was with be by on not he this are or his from at which "
    "but have an had they you were their one all we can her has there been if more when will would "
    "who so time people water day part number way write call find long down may look word back over"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server, the model, and what prompts are made of."""

    endpoint: Endpoint
    model: str
    vocabulary: Vocabulary


@dataclass(slots=True, kw_only=True)
class Run:
    """What happened. `num_late` requests waited in the client because `concurrency` was reached."""

    samples: list[Sample] = field(default_factory=list)
    start_s: float = 0.0
    end_s: float = 0.0
    num_late: int = 0
    interrupted: bool = False


def find_target(endpoint: Endpoint, model: str | None) -> Target:
    """Asks the server what it serves. Raises BatonError when it cannot be reached."""
    name = model or model_name(endpoint)
    try:
        body = {"model": name, "prompt": TEXT, "add_special_tokens": False}
        tokens = {int(token) for token in post_json(endpoint, "/tokenize", body)["tokens"]}
        vocabulary = Vocabulary(token_ids=tuple(sorted(tokens)))
    except (BatonError, KeyError, TypeError, ValueError):
        # A server without /tokenize: lengths are then words, and the report says so.
        vocabulary = Vocabulary(words=tuple(TEXT.split()))
    return Target(endpoint=endpoint, model=name, vocabulary=vocabulary)


async def offer(target: Target, workload: Workload, run: Run) -> None:
    """Sends every request and fills `run`; what is there is right at any time, also when
    cancelled.
    """
    pool = Pool(target.endpoint)
    maker = JobMaker(workload, target.vocabulary)
    slots = asyncio.Semaphore(workload.concurrency)
    tasks: set[asyncio.Task[None]] = set()
    run.start_s = time.perf_counter()

    async def one(request: bytes) -> None:
        try:
            run.samples.append(await pool.send(request, workload.timeout_s))
            run.end_s = time.perf_counter()
        finally:
            slots.release()

    try:
        for at_s in workload.arrivals():
            await asyncio.sleep(max(0.0, run.start_s + at_s - time.perf_counter()))
            if workload.request_rate is not None and slots.locked():
                run.num_late += 1
            await slots.acquire()
            if _over(workload, run):
                break
            task = asyncio.create_task(one(encode(target, workload, maker.next())))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        pool.close()


def _over(workload: Workload, run: Run) -> bool:
    limit_s = workload.duration_s
    return limit_s is not None and time.perf_counter() - run.start_s >= limit_s


def encode(target: Target, workload: Workload, job: Job) -> bytes:
    """The HTTP request of one job: a stream of exactly `output_len` tokens, where the server
    obeys.
    """
    body = {
        "model": target.model,
        "prompt": job.prompt,
        "max_tokens": job.output_len,
        "temperature": workload.temperature,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return encode_request(target.endpoint, PATH, json.dumps(body).encode())
