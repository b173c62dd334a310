"""The streams between gateways and workers: framing, ends, and who does not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from baton.protos import worker_pb2 as pb
from baton.protos.errors import AuthenticationError, ConfigError, UnavailableError
from baton.protos.stream import StreamCall
from baton.protos.stream_server import CallContext, StreamServer

Call = StreamCall[pb.GatewayMessage, pb.WorkerMessage]


class Echo:
    """Answers an abort for handle n with n `Done`s; some numbers have a meaning of their own."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.num_sent = 0

    async def Connect(
        self, requests: AsyncIterator[pb.GatewayMessage], context: CallContext
    ) -> AsyncIterator[pb.WorkerMessage]:
        try:
            async for message in requests:
                for number in message.aborts:
                    if number == 401:
                        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
                    if number == 500:
                        raise RuntimeError("a fault")
                    if number == 0:
                        return
                    for handle in range(number):
                        self.num_sent += 1
                        yield pb.WorkerMessage(done=[pb.Done(handle=handle)])
        finally:
            self.ended.set()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, str]]:
    servicer = Echo()
    server = StreamServer(servicer)
    await server.start("127.0.0.1", 0)
    yield servicer, f"127.0.0.1:{server.port}"
    await server.stop(0.0)


async def opened(address: str, *numbers: int) -> Call:
    call: Call = await StreamCall.open(address, "Connect", pb.WorkerMessage)
    call.send(pb.GatewayMessage(aborts=numbers))
    return call


async def test_messages_keep_their_order_and_a_call_ends_well(echo: tuple[Echo, str]) -> None:
    call = await opened(echo[1], 3, 200, 0)
    handles = []
    while (message := await call.read()) is not None:
        handles += [done.handle for done in message.done]
    assert handles == [*range(3), *range(200)]
    assert await call.read() is None


async def test_messages_of_many_reads_arrive_whole(echo: tuple[Echo, str]) -> None:
    call: Call = await StreamCall.open(echo[1], "Connect", pb.WorkerMessage)
    prompt = range(1 << 20)
    submit = pb.Submit(generate=pb.Generate(prompt_token_ids=prompt))
    await call.write(pb.GatewayMessage(submits=[submit], aborts=[1]))
    message = await call.read()
    assert message is not None
    assert message.done[0].handle == 0


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [(401, AuthenticationError, "who are you"), (500, UnavailableError, "RuntimeError: a fault")],
)
async def test_why_a_call_ended_is_told(
    echo: tuple[Echo, str], number: int, error: type[Exception], words: str
) -> None:
    call = await opened(echo[1], number)
    with pytest.raises(error, match=words):
        await call.read()


async def test_a_caller_that_leaves_ends_its_method(echo: tuple[Echo, str]) -> None:
    call = await opened(echo[1], 1)
    await call.read()
    reading = asyncio.create_task(call.read())
    await asyncio.sleep(0)
    call.close("enough")
    with pytest.raises(UnavailableError, match="enough"):
        await reading
    async with asyncio.timeout(10):
        await echo[0].ended.wait()


async def test_who_does_not_read_is_not_written_to_without_bound(echo: tuple[Echo, str]) -> None:
    many = 1 << 20
    call = await opened(echo[1], many)
    await call.read()
    async with asyncio.timeout(30):
        before = -1
        while before != echo[0].num_sent:
            before = echo[0].num_sent
            await asyncio.sleep(0.2)
    assert before < many
    call.close()


async def test_a_method_that_is_not_there_is_refused(echo: tuple[Echo, str]) -> None:
    for method in ("Handover?", "GET / HTTP/1.1"):
        call: Call = await StreamCall.open(echo[1], method, pb.WorkerMessage)
        with pytest.raises(UnavailableError, match="there is no method"):
            await call.read()


async def test_a_stranger_that_speaks_http_is_let_go(echo: tuple[Echo, str]) -> None:
    host, _, port = echo[1].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(10):
        assert b"HTTP" not in await reader.read()
    writer.close()


async def test_nobody_there_and_a_taken_port_are_named(echo: tuple[Echo, str]) -> None:
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await StreamCall.open("127.0.0.1:1", "Connect", pb.WorkerMessage)
    port = int(echo[1].rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"port is {port}"):
        await StreamServer(Echo()).start("127.0.0.1", port)


async def test_a_server_that_stops_ends_its_calls(echo: tuple[Echo, str]) -> None:
    server = StreamServer(Echo())
    await server.start("127.0.0.1", 0)
    call = await opened(f"127.0.0.1:{server.port}", 1)
    await call.read()
    await server.stop(0.1)
    with pytest.raises(UnavailableError):
        await call.read()
