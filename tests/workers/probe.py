"""A gateway's side of a worker's stream, by hand: submits requests and collects what comes back."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.gateway.link_messages import prefill_target
from baton.protos import worker_pb2 as pb
from baton.protos.constraints import Grammar, Thought
from baton.protos.convert import generate_to_proto
from baton.protos.proof import GatewayGreeting
from baton.protos.stream import StreamCall
from baton.protos.types import GenerateRequest, Member, SamplingParams

# What the workers of these tests share.
SECRET = "of the test"
_Call = StreamCall[pb.GatewayMessage, pb.WorkerMessage]


@dataclass(slots=True)
class Answer:
    tokens: list[int] = field(default_factory=list)
    done: pb.Done | None = None
    logprobs: list[pb.TopLogprobs] = field(default_factory=list)
    prompt_logprobs: list[pb.TopLogprobs] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Probe:
    """One gateway stream to one worker."""

    def __init__(self, member: Member, secret: str = SECRET) -> None:
        self.member = member
        self._secret = secret
        self.hello: pb.WorkerHello | None = None
        self.loads: list[pb.Load] = []
        self.kv_events: list[pb.KvEventBatch] = []
        self.answers: dict[int, Answer] = defaultdict(Answer)
        self._handle = 0

    async def __aenter__(self) -> Probe:
        self._call = call = await _Call.open(self.member.address, "Connect", pb.WorkerMessage)
        first = await GatewayGreeting(self._secret, "probe", "1").run(call)
        self._reader = asyncio.create_task(self._read(call, first))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._call.close()

    def submit(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams,
        *,
        prefill: Sequence[Member] = (),
        output: Sequence[int] = (),
        deadline_s: float = 60.0,
        salt: bytes = b"",
        grammar: Grammar | None = None,
        thought: Thought | None = None,
        pull_from: Member | None = None,
    ) -> int:
        self._handle += 1
        request = GenerateRequest(
            request_id=f"request-{self._handle}",
            prompt_token_ids=prompt,
            output_token_ids=output,
            sampling=sampling,
            cache_salt=salt,
            grammar=grammar,
            thought=thought,
        )
        submit = pb.Submit(
            handle=self._handle,
            generate=generate_to_proto(request),
            prefill=map(prefill_target, prefill),
            deadline_s=deadline_s,
            pull_from=None if pull_from is None else prefill_target(pull_from),
        )
        self.answers[self._handle] = Answer()
        self._call.send(pb.GatewayMessage(submits=[submit]))
        return self._handle

    def lend_to(self, borrower: Member) -> None:
        self._call.send(pb.GatewayMessage(borrowers=[prefill_target(borrower)]))

    def abort(self, handle: int) -> None:
        self._call.send(pb.GatewayMessage(aborts=[handle]))

    async def wait(self, handle: int, *, tokens: int | None = None) -> Answer:
        """Until the request is done, or has so many tokens."""
        answer = self.answers[handle]
        async with asyncio.timeout(60):
            while answer.done is None and (tokens is None or len(answer.tokens) < tokens):
                answer.changed.clear()
                await answer.changed.wait()
        return answer

    async def _read(self, call: _Call, message: object) -> None:
        while isinstance(message, pb.WorkerMessage):
            if message.HasField("hello"):
                self.hello = message.hello
            if message.HasField("load"):
                self.loads.append(message.load)
            self.kv_events.extend(message.kv_events)
            start = 0
            for handle, count in zip(
                message.tokens.handles, message.tokens.num_tokens, strict=True
            ):
                answer = self.answers[handle]
                answer.tokens.extend(message.tokens.token_ids[start : start + count])
                answer.changed.set()
                start += count
            for chunk in message.logprobs:
                self.answers[chunk.handle].logprobs.extend(chunk.tokens)
                self.answers[chunk.handle].prompt_logprobs.extend(chunk.prompt)
            for done in message.done:
                self.answers[done.handle].done = done
                self.answers[done.handle].changed.set()
            message = await call.read()
