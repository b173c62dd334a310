"""The public gRPC service on a real channel, found by reflection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.gateway.fakes import FakeFleet
from tests.gateway.serving import MODEL_DIR, says, tokenizer, until

from baton.gateway.config import GatewayConfig
from baton.gateway.server import GatewayServer
from baton.protos import public_pb2 as pb
from baton.protos.errors import OverloadedError, UnavailableError
from baton.protos.public_pb2_grpc import BatonStub

_SERVICE = "baton.v1.Baton"


@dataclass
class Served:
    server: GatewayServer
    fleet: FakeFleet
    channel: grpc.aio.Channel
    stub: Any


@contextlib.asynccontextmanager
async def serving(fleet: FakeFleet, **config: Any) -> AsyncIterator[Served]:
    full = GatewayConfig(**{"model_dir": MODEL_DIR, "http_port": 0, "grpc_port": 0, **config})
    server = GatewayServer(full, fleet, tokenizer=tokenizer())
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            yield Served(server, fleet, channel, BatonStub(channel))
    finally:
        await server.close(0.0)
    assert not fleet.running


def _chat(text: str = "hi", **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        chat=pb.Chat(messages=[pb.Message(role="user", content=text)]), **fields
    )


async def test_generate() -> None:
    async with serving(FakeFleet(says("Hello 你好"), per_chunk=2)) as gateway:
        call = gateway.stub.Generate(_chat(explain=True, sampling=pb.Sampling(logprobs=1)))
        response = await call
        assert response.text == "Hello 你好"
        assert response.finish_reason == "stop"
        assert list(response.token_ids) == [*tokenizer().encode("Hello 你好"), 2]
        assert len(response.logprobs) == len(response.token_ids)
        assert response.usage.completion_tokens == len(response.token_ids)
        assert response.usage.cached_tokens == 16
        assert "decode=d0" in (await call.trailing_metadata())["x-baton-plan"]
        request = gateway.fleet.requests[0]
        assert request.sampling.max_tokens == 8192 - len(request.prompt_token_ids)


async def test_stream() -> None:
    async with serving(FakeFleet(says("Hello 你好"))) as gateway:
        sampling = pb.Sampling(seed=3, max_tokens=50, temperature=0.5, prompt_logprobs=0)
        call = gateway.stub.GenerateStream(pb.GenerateRequest(prompt="a b", sampling=sampling))
        chunks = [chunk async for chunk in call]
        assert "".join(chunk.text for chunk in chunks) == "Hello 你好"
        assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
        assert chunks[-1].usage.prompt_tokens == len(chunks[0].prompt_logprobs) == 2
        assert "x-baton-plan" not in (await call.trailing_metadata())
        params = gateway.fleet.requests[0].sampling
        assert (params.seed, params.max_tokens, params.temperature) == (3, 50, 0.5)


async def test_token_ids_default_length_and_stop() -> None:
    async with serving(FakeFleet(says("one two three " * 20))) as gateway:
        ids = pb.TokenIds(ids=[80, 81])
        response = await gateway.stub.Generate(pb.GenerateRequest(token_ids=ids))
        assert (response.usage.completion_tokens, response.finish_reason) == (16, "length")
        stopping = pb.Sampling(stop=["two"], max_tokens=100)
        response = await gateway.stub.Generate(pb.GenerateRequest(token_ids=ids, sampling=stopping))
        assert (response.text, response.finish_reason) == ("one ", "stop")


async def test_tokenize_detokenize_models() -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        response = await gateway.stub.Tokenize(pb.TokenizeRequest(prompt="hi there"))
        assert list(response.ids) == tokenizer().encode("hi there")
        back = await gateway.stub.Detokenize(pb.DetokenizeRequest(ids=response.ids))
        assert back.text == "hi there"
        chat = pb.Chat(
            messages=[pb.Message(role="user", content="hi")],
            template_kwargs_json='{"enable_thinking": false}',
        )
        ids = (await gateway.stub.Tokenize(pb.TokenizeRequest(chat=chat))).ids
        assert tokenizer().decode(ids).endswith("</think>\n\n")
        models = (await gateway.stub.Models(pb.ModelsRequest())).models
        assert [(model.id, model.max_model_len) for model in models] == [("baton-tiny", 8192)]


@pytest.mark.parametrize(
    ("request_", "code", "param"),
    [
        (pb.GenerateRequest(), "INVALID_ARGUMENT", "input"),
        (_chat(model="gpt"), "NOT_FOUND", "model"),
        (_chat(sampling=pb.Sampling(temperature=-1)), "INVALID_ARGUMENT", "temperature"),
        (_chat(sampling=pb.Sampling(max_tokens=0)), "INVALID_ARGUMENT", "sampling.max_tokens"),
        (_chat(sampling=pb.Sampling(stop=[""])), "INVALID_ARGUMENT", "sampling.stop"),
        (_chat(timeout_s=-1), "INVALID_ARGUMENT", "timeout_s"),
        (pb.GenerateRequest(chat=pb.Chat()), "INVALID_ARGUMENT", "chat.messages"),
        (
            pb.GenerateRequest(
                chat=pb.Chat(messages=[pb.Message(role="user")], template_kwargs_json="[")
            ),
            "INVALID_ARGUMENT",
            "chat.template_kwargs_json",
        ),
    ],
)
async def test_refusals_name_the_field(request_: pb.GenerateRequest, code: str, param: str) -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        for method in ("Generate", "GenerateStream"):
            call = getattr(gateway.stub, method)(request_)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (call if method == "Generate" else call.read())
            assert caught.value.code() is getattr(grpc.StatusCode, code)
            assert caught.value.trailing_metadata()["x-baton-error-param"] == param


async def test_errors_of_workers_and_limits() -> None:
    async with serving(FakeFleet(says("one two")), max_body_bytes=2000) as gateway:
        for error in (UnavailableError("none left"), OverloadedError("full", retry_after_s=2)):
            gateway.fleet.plan_error = error
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await gateway.stub.Generate(_chat())
            assert caught.value.code().name == error.grpc_code
            assert caught.value.details() == error.message
        assert caught.value.trailing_metadata()["retry-after"] == "2"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway.stub.Generate(_chat("x" * 3000))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_authentication() -> None:
    async with serving(FakeFleet(says("x")), api_keys=("key",)) as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway.stub.Models(pb.ModelsRequest())
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = (("authorization", "Bearer key"),)
        assert (await gateway.stub.Models(pb.ModelsRequest(), metadata=metadata)).models


async def test_a_client_that_cancels_aborts_its_generation() -> None:
    fleet = FakeFleet(says("word " * 200), delay_s=0.01)
    async with serving(fleet) as gateway:
        stream = gateway.stub.GenerateStream(_chat())
        await stream.read()
        stream.cancel()
        await until(lambda: not fleet.running)
        fleet.delay_s = 60.0
        unary = asyncio.ensure_future(gateway.stub.Generate(_chat()))
        await until(lambda: len(fleet.running) == 1)
        unary.cancel()
        await until(lambda: not fleet.running)
        assert fleet.num_aborted == 2
        await until(lambda: gateway.server.service.admission.in_flight == 0)


async def test_deadlines() -> None:
    fleet = FakeFleet(says("x"), delay_s=60.0)
    async with serving(fleet) as gateway:
        for request, timeout in ((_chat(timeout_s=0.1), None), (_chat(), 0.1)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await gateway.stub.Generate(request, timeout=timeout)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: not fleet.running)
        assert fleet.timeouts_s[0] == pytest.approx(0.1)
        assert fleet.timeouts_s[1] is not None
        # What is left of the call's own deadline, which gRPC rounds up a little, and not the limit.
        assert 0 < fleet.timeouts_s[1] < 1.0


async def test_health_follows_the_workers() -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        health = health_pb2_grpc.HealthStub(gateway.channel)

        async def status(service: str) -> str:
            response = await health.Check(health_pb2.HealthCheckRequest(service=service))
            return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

        assert await status("") == await status(_SERVICE) == "SERVING"
        gateway.fleet.ready = False
        async with asyncio.timeout(5):
            while await status(_SERVICE) == "SERVING":
                await asyncio.sleep(0.05)
        assert await status("") == "SERVING"


async def test_a_client_without_our_code_can_call_by_reflection() -> None:
    """What grpcurl does: services, then descriptors, then a call with messages built from them."""
    async with serving(FakeFleet(says("x"))) as gateway:
        reflection = reflection_pb2_grpc.ServerReflectionStub(gateway.channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=_SERVICE),
        ]
        answers = [a async for a in reflection.ServerReflectionInfo(iter(asked))]
        names = {service.name for service in answers[0].list_services_response.service}
        assert {_SERVICE, "grpc.health.v1.Health"} <= names
        pool = DescriptorPool()
        for raw in answers[1].file_descriptor_response.file_descriptor_proto:
            pool.Add(FileDescriptorProto.FromString(raw))
        method = pool.FindServiceByName(_SERVICE).methods_by_name["Tokenize"]
        request_class = GetMessageClass(method.input_type)
        call = gateway.channel.unary_unary(
            f"/{_SERVICE}/Tokenize",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        response: Any = await call(request_class(prompt="hi there"))
        assert list(response.ids) == tokenizer().encode("hi there")
