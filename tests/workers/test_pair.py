"""A decode worker and a prefill worker together: same tokens wherever the prompt is computed."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import grpc
import pytest
from tests.workers.conftest import Pair, engine_config, started_pair
from tests.workers.probe import Probe

from baton.decode_worker.config import DecodeWorkerConfig
from baton.decode_worker.worker import DecodeWorker
from baton.engine.engine import Engine
from baton.gateway.fleet import Fleet
from baton.gateway.fleet_config import StaticDirectory
from baton.kvtransfer.hello import CalledHandshake, Identity
from baton.prefill_worker.config import PrefillWorkerConfig
from baton.prefill_worker.worker import PrefillWorker
from baton.protos import worker_pb2 as pb
from baton.protos.errors import AuthenticationError, ConfigError
from baton.protos.proof import GatewayGreeting
from baton.protos.server import start_worker_server
from baton.protos.stream import StreamCall
from baton.protos.types import GenerateRequest, Member, Role, SamplingParams
from baton.protos.worker_pb2_grpc import WorkerServicer, WorkerStub
from baton.router.config import RouterConfig

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Mixed lengths around the borders of blocks and chunks."""
    rng = random.Random(seed)
    lengths = [1, 15, 16, 17, 33, 64, 65, 130, 200]
    return [
        [rng.randrange(20, 700) for _ in range(lengths[i % len(lengths)])] for i in range(count)
    ]


def run_alone(requests: list[tuple[list[int], SamplingParams]]) -> list[list[int]]:
    """What one engine without a cluster answers."""
    engine = Engine(engine_config(Role.BOTH))
    answers: dict[str, list[int]] = {}
    for i, (prompt, sampling) in enumerate(requests):
        engine.add(GenerateRequest(request_id=str(i), prompt_token_ids=prompt, sampling=sampling))
        answers[str(i)] = []
    while engine.has_work():
        for output in engine.step().outputs:
            answers[output.request_id].extend(output.token_ids)
    engine.close()
    return list(answers.values())


async def test_remote_local_and_alone_agree(pair: Pair) -> None:
    seeded = SamplingParams(temperature=0.9, top_p=0.95, seed=7, max_tokens=16, ignore_eos=True)
    requests = [(p, GREEDY if i % 3 else seeded) for i, p in enumerate(prompts(12))]
    expected = await asyncio.to_thread(run_alone, requests)
    async with Probe(pair.decode_member) as gateway:
        remote = [gateway.submit(*r, prefill=[pair.prefill_member]) for r in requests]
        answers = [await gateway.wait(handle) for handle in remote]
        assert [a.tokens for a in answers] == expected
        assert {a.done.prefilled_by for a in answers if a.done} == {"prefill-0"}
        assert not any(a.done.fallback_reason for a in answers if a.done)
        assert (await pair.prefill.load()).num_pushed_bytes > 0
        local = [gateway.submit(*r) for r in requests]
        answers = [await gateway.wait(handle) for handle in local]
        assert [a.tokens for a in answers] == expected
        assert {a.done.prefilled_by for a in answers if a.done} == {""}
        assert {a.done.finish_reason for a in answers if a.done} == {"length"}
        assert all(a.done.queue_s >= 0 and a.done.prefill_s > 0 for a in answers if a.done)


async def test_a_replay_goes_on_where_the_other_worker_stopped(pair: Pair) -> None:
    sampling = SamplingParams(
        temperature=0.8, seed=3, max_tokens=20, ignore_eos=True, presence_penalty=0.5
    )
    prompt = prompts(7)[6]
    (whole,) = await asyncio.to_thread(run_alone, [(prompt, sampling)])
    async with Probe(pair.decode_member) as gateway:
        for targets in ([], [pair.prefill_member]):
            handle = gateway.submit(prompt, sampling, output=whole[:9], prefill=targets)
            answer = await gateway.wait(handle)
            assert answer.tokens == whole[9:]


async def test_a_pool_of_fp8_is_filled_from_one_of_float32() -> None:
    requests = [(prompt, GREEDY) for prompt in prompts(9)[6:]]
    expected = await asyncio.to_thread(run_alone, requests)
    engines = [
        engine_config(Role.PREFILL),
        engine_config(Role.DECODE, kv_cache_dtype="fp8_e4m3", block_size=32),
    ]
    async with started_pair(*engines) as pair, Probe(pair.decode_member) as gateway:
        for request, alone in zip(requests, expected, strict=True):
            handle = gateway.submit(*request, prefill=[pair.prefill_member])
            answer = await gateway.wait(handle)
            assert answer.done is not None
            assert not answer.done.fallback_reason
            assert answer.done.prefilled_by == "prefill-0"
            # The first is computed before anything is rounded.
            assert answer.tokens[0] == alone[0]
            assert len(answer.tokens) == len(alone)
        await pair.check_all_free()


async def test_only_uncached_blocks_are_sent(pair: Pair) -> None:
    prompt = prompts(9)[8]
    async with Probe(pair.decode_member) as gateway:
        first = await gateway.wait(gateway.submit(prompt, GREEDY, prefill=[pair.prefill_member]))
        again = await gateway.wait(gateway.submit(prompt, GREEDY, prefill=[pair.prefill_member]))
        assert again.tokens == first.tokens
        assert again.done is not None
        assert again.done.num_cached_tokens >= (len(prompt) - 1) // 16 * 16
        stored = {event.stored for event in gateway.kv_events if event.stored}
        assert stored


async def test_logprobs_come_with_the_first_remote_token_too(pair: Pair) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=4, logprobs=3, ignore_eos=True)
    async with Probe(pair.decode_member) as gateway:
        prompt = prompts(4)[3]
        remote = await gateway.wait(gateway.submit(prompt, sampling, prefill=[pair.prefill_member]))
        assert [value.token_id for value in remote.logprobs] == remote.tokens
        assert all(len(value.top_ids) == 3 for value in remote.logprobs)
        asked = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)
        local = await gateway.wait(gateway.submit(prompt, asked))
        assert [v.token_id for v in local.prompt_logprobs][1:] == prompt[1:]


async def test_an_impossible_request_is_refused_by_name(pair: Pair) -> None:
    async with Probe(pair.decode_member) as gateway:
        too_long = [1] * (pair.decode.config.engine.block_size * 300)
        for targets in ([], [pair.prefill_member]):
            answer = await gateway.wait(gateway.submit(too_long, GREEDY, prefill=targets))
            assert answer.done is not None
            assert answer.done.error_code == "context_length_exceeded"
            assert str(len(too_long)) in answer.done.error_message
        bad = SamplingParams(temperature=-1.0)
        answer = await gateway.wait(gateway.submit([1, 2], bad))
        assert answer.done is not None
        assert "temperature" in answer.done.error_message


async def test_aborts_at_any_moment_leave_every_block_free(pair: Pair) -> None:
    rng = random.Random(5)
    sampling = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
    async with Probe(pair.decode_member) as gateway:
        for round_ in range(12):
            targets = [pair.prefill_member] if round_ % 3 else []
            handles = [gateway.submit(p, sampling, prefill=targets) for p in prompts(6, round_)]
            await asyncio.sleep(rng.random() * 0.1)
            for handle in handles:
                gateway.abort(handle)
    await pair.check_all_free()


async def test_a_lost_gateway_frees_everything(pair: Pair) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=500, ignore_eos=True)
    async with Probe(pair.decode_member) as gateway:
        handles = [gateway.submit(p, sampling, prefill=[pair.prefill_member]) for p in prompts(6)]
        await gateway.wait(handles[0], tokens=1)
    await pair.check_all_free()


async def test_a_prefill_worker_that_dies_is_replaced_by_local_prefill(pair: Pair) -> None:
    requests = [(p, GREEDY) for p in prompts(9)]
    expected = await asyncio.to_thread(run_alone, requests)
    other = PrefillWorker(
        PrefillWorkerConfig(
            engine=engine_config(Role.PREFILL), worker_id="prefill-1", secret="of the test"
        )
    )
    member = await other.start()
    async with Probe(pair.decode_member) as gateway:
        handles = [gateway.submit(*request, prefill=[member]) for request in requests]
        await gateway.wait(handles[0], tokens=1)
        await other.close()
        answers = [await gateway.wait(handle) for handle in handles]
        assert [a.tokens for a in answers] == expected
        gone = await gateway.wait(gateway.submit(*requests[4], prefill=[member]))
        assert gone.tokens == expected[4]
        assert gone.done is not None
        assert "prefill-1" in gone.done.fallback_reason


class SilentPrefill(WorkerServicer):
    """Greets like a worker of this fleet and then never says anything."""

    def __init__(self, identity: Identity) -> None:
        self._handshake = CalledHandshake(identity)

    async def Handover(self, requests, context):  # type: ignore[no-untyped-def]
        incoming = aiter(requests)
        challenge = self._handshake.challenge((await anext(incoming)).challenge)
        yield pb.PrefillMessage(challenge=challenge)
        self._handshake.accept((await anext(incoming)).hello)
        yield pb.PrefillMessage(hello=self._handshake.hello())
        await asyncio.sleep(3600)


async def test_a_silent_prefill_worker_is_given_up_in_time() -> None:
    decode = DecodeWorker(
        DecodeWorkerConfig(
            engine=engine_config(Role.DECODE),
            prefill_timeout_s=1.0,
            handshake_timeout_s=3.0,
            lease_s=1.0,
        )
    )
    prefill = PrefillWorker(PrefillWorkerConfig(engine=engine_config(Role.PREFILL)))
    decode_member, prefill_member = await decode.start(), await prefill.start()
    server = await start_worker_server(SilentPrefill(prefill.host.identity), "127.0.0.1", 0)
    silent = Member(
        worker_id=prefill_member.worker_id,
        incarnation=prefill_member.incarnation,
        role=Role.PREFILL,
        address=f"127.0.0.1:{server.port}",
        model=prefill_member.model,
    )
    prompt = prompts(6)[5]
    (expected,) = await asyncio.to_thread(run_alone, [(prompt, GREEDY)])
    async with Probe(decode_member, "") as gateway:
        answer = await gateway.wait(gateway.submit(prompt, GREEDY, prefill=[silent]))
        assert answer.tokens == expected
        assert answer.done is not None
        assert "not done within" in answer.done.fallback_reason
    await server.stop(0.0)
    await decode.close()
    await prefill.close()


async def test_a_worker_without_the_secret_gets_no_kv_and_is_not_asked_again(pair: Pair) -> None:
    stranger = PrefillWorker(
        PrefillWorkerConfig(engine=engine_config(Role.PREFILL), worker_id="prefill-1")
    )
    member = await stranger.start()
    async with Probe(pair.decode_member) as gateway:
        for _ in range(2):
            answer = await gateway.wait(gateway.submit(prompts(3)[2], GREEDY, prefill=[member]))
            assert answer.done is not None
            assert answer.done.finish_reason == "length"
            assert "does not know the cluster secret" in answer.done.fallback_reason
            # The second request is told from memory: nobody is there to ask.
            await stranger.close()


async def test_a_gateway_without_the_secret_gets_nothing(pair: Pair) -> None:
    with pytest.raises(AuthenticationError, match="decode-0 does not know the cluster secret"):
        await Probe(pair.decode_member, "another").__aenter__()
    directory = StaticDirectory([pair.decode_member])
    fleet = Fleet(directory, RouterConfig(), gateway_id="stranger", secret="another")
    await fleet.start()
    async with asyncio.timeout(20):
        while (view := fleet.workers()[0]).state != "refused":
            await asyncio.sleep(0.01)
    assert "does not know the cluster secret of stranger" in view.detail
    await fleet.close()
    for member in (pair.decode_member, pair.prefill_member):
        async with grpc.aio.insecure_channel(member.grpc_address) as channel:
            await forge(WorkerStub(channel).Connect(), member)
        await forge(await StreamCall.open(member.address, "Connect", pb.WorkerMessage), member)
    assert pair.decode.num_requests() == 0


async def forge(call: Any, member: Member) -> None:
    """Sends the worker's own mac back, with a request."""
    await call.write(GatewayGreeting("", "stranger", "1").hello())
    challenge = (await call.read()).challenge
    assert challenge.worker_id == member.worker_id
    generate = pb.Generate(prompt_token_ids=[1, 2])
    forged = pb.GatewayMessage(submits=[pb.Submit(generate=generate)], mac=challenge.mac)
    await call.write(forged)
    with pytest.raises((AuthenticationError, grpc.aio.AioRpcError)) as refusal:
        await call.read()
    assert "does not know the cluster secret" in str(refusal.value)


async def test_another_incarnation_at_the_address_is_refused(pair: Pair) -> None:
    stale = Member(
        worker_id="prefill-0",
        incarnation="of-yesterday",
        role=Role.PREFILL,
        address=pair.prefill_member.address,
        model="m",
    )
    async with Probe(pair.decode_member) as gateway:
        answer = await gateway.wait(gateway.submit(prompts(3)[2], GREEDY, prefill=[stale]))
        assert answer.done is not None
        assert answer.done.finish_reason == "length"
        assert "of-yesterday" in answer.done.fallback_reason


async def test_a_draining_worker_hands_its_requests_back(pair: Pair) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=2000, ignore_eos=True)
    async with Probe(pair.decode_member) as gateway:
        handle = gateway.submit(prompts(3)[2], sampling)
        await gateway.wait(handle, tokens=2)
        await pair.decode.drain(0.1)
        answer = await gateway.wait(handle)
        assert answer.done is not None
        assert answer.done.error_code == "worker_leaving"
        refused = await gateway.wait(gateway.submit([5, 6, 7], GREEDY))
        assert refused.done is not None
        assert refused.done.error_code == "unavailable"


async def test_the_deadline_ends_a_request(pair: Pair) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=3000, ignore_eos=True)
    async with Probe(pair.decode_member) as gateway:
        answer = await gateway.wait(gateway.submit([5, 6, 7], sampling, deadline_s=0.2))
        assert answer.done is not None
        assert answer.done.error_code == "deadline_exceeded"


async def test_health_is_served(pair: Pair) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with grpc.aio.insecure_channel(pair.decode_member.grpc_address) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_taken_port_is_named_and_leaves_nothing_running(pair: Pair) -> None:
    port = int(pair.decode_member.address.rpartition(":")[2])
    threads = {thread.name for thread in threading.enumerate()}
    for worker in (
        DecodeWorker(DecodeWorkerConfig(engine=engine_config(Role.DECODE), port=port)),
        PrefillWorker(PrefillWorkerConfig(engine=engine_config(Role.PREFILL), port=port)),
    ):
        with pytest.raises(ConfigError, match=f"port is {port}"):
            await worker.start()
    left = {thread.name for thread in threading.enumerate()} - threads
    assert not [name for name in left if name.startswith(("engine", "kv-"))]
