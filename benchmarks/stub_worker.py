"""A worker that speaks the real wire with a stub-speed engine: one token a running request a step.

What the gateway can carry is measured with it, and how a fleet survives its workers is tested with
it. Tokens are a function of (prompt, position), so a replay must continue with the same ones.

Run `python benchmarks/stub_worker.py --worker-id d0 --period-ms 5`: the first line of its standard
output is its Member as JSON. It ends when its standard input does, so it cannot outlive its parent.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import dataclasses
import json
import sys
import uuid
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import grpc

from baton.protos import worker_pb2 as pb
from baton.protos.convert import generate_from_proto, logprobs_to_proto
from baton.protos.errors import BatonError, OverloadedError, UnavailableError
from baton.protos.feed import FeedHub, GatewayFeed
from baton.protos.proof import WorkerGreeting
from baton.protos.server import WorkerServer, start_worker_server
from baton.protos.types import (
    KvEvents,
    Member,
    RequestOutput,
    Role,
    SamplingParams,
    TokenLogprob,
    WorkerLoad,
)
from baton.protos.worker_pb2_grpc import WorkerServicer

VOCAB_SIZE = 32_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StubConfig:
    """`period_s` is one step. `max_running` bounds requests; beyond it they are refused."""

    worker_id: str = "stub-0"
    incarnation: str = field(default_factory=lambda: uuid.uuid4().hex)
    role: Role = Role.DECODE
    host: str = "127.0.0.1"
    port: int = 0
    period_s: float = 0.005
    report_interval_s: float = 0.25
    max_running: int = 4096
    model: str = "stub"
    model_digest: str = "stub"
    block_size: int = 16
    vocab_size: int = VOCAB_SIZE
    max_model_len: int = 1 << 20


def stub_token(prompt_token_ids: Sequence[int], position: int, vocab_size: int = VOCAB_SIZE) -> int:
    """The output token at `position` (0 is the first) of the answer to a prompt."""
    return _token(_prompt_seed(prompt_token_ids), position, vocab_size)


def stub_logprob(token_id: int) -> TokenLogprob:
    """What the stub reports for a token; exact in float32."""
    return TokenLogprob(token_id, -(token_id % 64) / 64, 1)


def _prompt_seed(prompt_token_ids: Sequence[int]) -> int:
    return zlib.crc32(array.array("i", prompt_token_ids).tobytes())


def _token(seed: int, position: int, vocab_size: int) -> int:
    return (seed + position * 2_654_435_761) % 4_294_967_291 % vocab_size


@dataclass(slots=True)
class _Running:
    feed: GatewayFeed
    handle: int
    seed: int
    position: int
    sampling: SamplingParams
    # Prompt tokens whose log-probabilities are still to be reported.
    prompt: Sequence[int] = ()


def _logprobs(run: _Running, token_id: int) -> pb.LogprobChunk:
    output = RequestOutput(request_id="", token_ids=[token_id])
    if run.sampling.logprobs is not None:
        output.logprobs = [stub_logprob(token_id)]
    if run.prompt:
        output.prompt_logprobs = [None, *map(stub_logprob, run.prompt[1:])]
    return logprobs_to_proto(run.handle, output)


class StubWorker(WorkerServicer):
    """The stub, served in this process; tests reach into its public attributes."""

    def __init__(self, config: StubConfig) -> None:
        self.config = config
        self.hub = FeedHub()
        self.draining = False
        # What it says of its queue and its KV blocks.
        self.load = WorkerLoad()
        # Ends requests without saying so, as a worker that dies at the wrong moment would.
        self.withholds_done = False
        # What the next submits are answered with instead of tokens, in order.
        self.refusals: list[BatonError] = []
        self.submits: list[pb.Submit] = []
        self.aborts: list[int] = []
        self.cached: list[bytes] = []
        self._running: dict[tuple[int, int], _Running] = {}
        self._work = asyncio.Event()
        self._server: WorkerServer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def num_running(self) -> int:
        return len(self._running)

    async def start(self) -> Member:
        """Serves on the configured port and begins to step."""
        self._server = await start_worker_server(self, self.config.host, self.config.port)
        self._tasks = [asyncio.create_task(self._step_loop()), asyncio.create_task(self._reports())]
        return Member(
            worker_id=self.config.worker_id,
            incarnation=self.config.incarnation,
            role=self.config.role,
            address=f"{self.config.host}:{self._server.port}",
            model=self.config.model,
            model_digest=self.config.model_digest,
        )

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.hub.close()
        if self._server is not None:
            await self._server.stop(0.0)

    def store(self, hashes: Sequence[bytes]) -> None:
        """Pretends that these blocks were cached just now."""
        self.cached.extend(hashes)
        self.hub.broadcast(None, KvEvents(stored=tuple(hashes)))

    def lose(self, hashes: Sequence[bytes]) -> None:
        """Caches these blocks too, but the batch that says so never arrives anywhere."""
        self.cached.extend(hashes)
        feeds, self.hub.feeds = self.hub.feeds, set()
        self.hub.broadcast(None, KvEvents(stored=tuple(hashes)))
        self.hub.feeds = feeds

    def report(self) -> None:
        """Sends a load report now."""
        self.hub.broadcast(self._load(), KvEvents())

    async def Connect(
        self,
        requests: AsyncIterator[pb.GatewayMessage],
        context: grpc.aio.ServicerContext[pb.GatewayMessage, pb.WorkerMessage],
    ) -> AsyncIterator[pb.WorkerMessage]:
        incoming = aiter(requests)
        greeting = WorkerGreeting("", self.config.worker_id, self.config.incarnation)
        yield greeting.challenge(await anext(incoming))
        greeting.check(await anext(incoming))
        feed = GatewayFeed(self._hello())
        feed.load(self._load())
        self.hub.join(feed, KvEvents(cleared=True, stored=tuple(self.cached)))
        reader = asyncio.create_task(self._read(incoming, feed))
        try:
            async for message in feed.messages():
                yield message
        finally:
            reader.cancel()
            self.hub.leave(feed)
            for key in [key for key, run in self._running.items() if run.feed is feed]:
                del self._running[key]

    async def _read(self, requests: AsyncIterator[pb.GatewayMessage], feed: GatewayFeed) -> None:
        try:
            async for message in requests:
                for submit in message.submits:
                    self._submit(feed, submit)
                for handle in message.aborts:
                    self.aborts.append(handle)
                    self._running.pop((id(feed), handle), None)
        finally:
            feed.close()

    def _submit(self, feed: GatewayFeed, submit: pb.Submit) -> None:
        self.submits.append(submit)
        refusal = self.refusals.pop(0) if self.refusals else self._refusal()
        if refusal is not None:
            feed.done(
                pb.Done(
                    handle=submit.handle,
                    finish_reason="error",
                    error_code=refusal.code,
                    error_message=refusal.message,
                )
            )
            return
        request = generate_from_proto(submit.generate)
        wants_prompt = request.sampling.prompt_logprobs is not None
        self._running[id(feed), submit.handle] = _Running(
            feed,
            submit.handle,
            _prompt_seed(request.prompt_token_ids),
            len(request.output_token_ids),
            request.sampling,
            request.prompt_token_ids if wants_prompt else (),
        )
        self._work.set()

    def _refusal(self) -> BatonError | None:
        if self.draining:
            return UnavailableError(f"worker {self.config.worker_id} is draining")
        if len(self._running) >= self.config.max_running:
            return OverloadedError(f"worker {self.config.worker_id} runs {len(self._running)}")
        return None

    async def _step_loop(self) -> None:
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            if not self._running:
                self._work.clear()
                await self._work.wait()
                next_s = loop.time()
            # Keep the pace: a late wake-up shortens the next sleep, but never piles up steps.
            next_s = max(next_s + self.config.period_s, loop.time())
            await asyncio.sleep(next_s - loop.time())
            self._step()

    def _step(self) -> None:
        finished = []
        vocab_size = self.config.vocab_size
        for key, run in self._running.items():
            token_id = _token(run.seed, run.position, vocab_size)
            run.feed.tokens(run.handle, (token_id,))
            if run.sampling.logprobs is not None or run.prompt:
                run.feed.logprobs(_logprobs(run, token_id))
                run.prompt = ()
            run.position += 1
            if run.position >= run.sampling.max_tokens:
                if not self.withholds_done:
                    run.feed.done(pb.Done(handle=run.handle, finish_reason="length"))
                finished.append(key)
        for key in finished:
            del self._running[key]

    async def _reports(self) -> None:
        while True:
            await asyncio.sleep(self.config.report_interval_s)
            self.report()

    def _load(self) -> WorkerLoad:
        return dataclasses.replace(
            self.load, num_running=len(self._running), draining=self.draining
        )

    def _hello(self) -> pb.WorkerHello:
        config = self.config
        return pb.WorkerHello(
            worker_id=config.worker_id,
            incarnation=config.incarnation,
            role=config.role,
            model=config.model,
            model_digest=config.model_digest,
            block_size=config.block_size,
            max_model_len=config.max_model_len,
            vocab_size=config.vocab_size,
            version="stub",
        )


async def _serve(config: StubConfig) -> None:
    worker = StubWorker(config)
    member = await worker.start()
    print(json.dumps(dataclasses.asdict(member)), flush=True)
    try:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    finally:
        await worker.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="A stub-speed worker on the real wire.")
    parser.add_argument("--worker-id", default="stub-0")
    parser.add_argument("--role", choices=[role.value for role in Role], default="decode")
    parser.add_argument("--period-ms", type=float, default=5.0, help="one step, in milliseconds")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    parser.add_argument("--model", default="stub", help="the model's name, as workers report it")
    args = parser.parse_args()
    config = StubConfig(
        worker_id=args.worker_id,
        role=Role(args.role),
        period_s=args.period_ms / 1e3,
        port=args.port,
        vocab_size=args.vocab_size,
        model=args.model,
    )
    asyncio.run(_serve(config))


if __name__ == "__main__":
    main()
