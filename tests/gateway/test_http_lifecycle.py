"""Every request ends: clients that leave, deadlines, limits and shutdown."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from tests.gateway.fakes import FakeFleet
from tests.gateway.serving import (
    CHAT,
    MESSAGES,
    Served,
    check_error,
    events,
    says,
    serving,
    text_of,
    until,
)

from baton.protos.errors import BatonError, ConfigError

_LONG = says("word " * 500)


async def _post_and_leave(gateway: Served, body: dict[str, Any], *, after_bytes: int) -> None:
    """Reads `after_bytes` of the response, then closes the socket."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.http_port)
    raw = json.dumps({"messages": MESSAGES, **body}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(raw)}\r\n\r\n"
    writer.write(head.encode() + raw)
    await until(lambda: len(gateway.fleet.running) > 0)
    if after_bytes:
        await reader.readexactly(after_bytes)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("body", "delay_s", "after_bytes"),
    [
        pytest.param({"stream": True}, 0.01, 600, id="mid-stream"),
        pytest.param({"stream": True, "n": 2}, 0.01, 600, id="mid-stream-n2"),
        pytest.param({"stream": True}, 60.0, 0, id="before-the-first-token"),
        pytest.param({"stream": True, "n": 2}, 60.0, 0, id="before-the-first-token-n2"),
        pytest.param({}, 0.01, 0, id="not-streaming"),
    ],
)
async def test_a_client_that_leaves_aborts_its_generation(
    body: dict[str, Any], delay_s: float, after_bytes: int
) -> None:
    async with serving(FakeFleet(_LONG, delay_s=delay_s)) as gateway:
        await _post_and_leave(gateway, body, after_bytes=after_bytes)
        await until(lambda: not gateway.fleet.running, 1.0)
        assert gateway.fleet.num_aborted >= 1
        await until(lambda: gateway.server.service.admission.in_flight == 0)
        metrics = (await gateway.http.get("/metrics")).text
        assert 'endpoint="/v1/chat/completions",outcome="cancelled"} 1.0' in metrics


async def test_deadline_before_and_inside_a_stream() -> None:
    headers = {"x-baton-timeout-s": "1.0"}
    async with serving(FakeFleet(_LONG, delay_s=0.02)) as gateway:
        body = {"messages": MESSAGES}
        check_error(await gateway.http.post(CHAT, json=body, headers=headers), 504)
        streamed = await gateway.http.post(CHAT, json={**body, "stream": True}, headers=headers)
        assert streamed.status_code == 200
        assert '"code":"deadline_exceeded"' in streamed.text.split("\n\n")[-2]
        assert gateway.fleet.timeouts_s == [1.0, 1.0]
        gateway.fleet.delay_s = 60.0
        late = await gateway.http.post(CHAT, json={**body, "stream": True}, headers=headers)
        check_error(late, 504)
        for value in ("soon", "0", "-1", "nan", "1e9"):
            bad = await gateway.http.post(CHAT, json=body, headers={"x-baton-timeout-s": value})
            assert bad.status_code == 400


async def test_too_many_requests() -> None:
    fleet = FakeFleet(_LONG, delay_s=60.0)
    async with serving(fleet, max_concurrent_requests=2, drain_grace_s=0.0) as gateway:
        held = [asyncio.create_task(gateway.chat()) for _ in range(2)]
        await until(lambda: len(fleet.running) == 2)
        response = await gateway.chat()
        check_error(response, 429)
        assert int(response.headers["retry-after"]) >= 1
        assert (await gateway.http.get("/health")).status_code == 200
        fleet.delay_s = 0.0
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await until(lambda: gateway.server.service.admission.in_flight == 0)
        assert (await gateway.chat(max_tokens=2)).status_code == 200


async def test_ready_follows_the_workers() -> None:
    fleet = FakeFleet(says("x"))
    async with serving(fleet) as gateway:
        fleet.ready = False
        check_error(await gateway.http.get("/ready"), 503)
        assert (await gateway.http.get("/health")).json() == {"status": "ok"}
        # Nothing but the model folder is needed to describe the model.
        assert (await gateway.http.get("/v1/models")).status_code == 200
        fleet.ready = True
        assert (await gateway.http.get("/ready")).status_code == 200


async def test_shutdown_lets_streams_finish() -> None:
    fleet = FakeFleet(says("a b c d e f g h"), delay_s=0.02)
    async with serving(fleet) as gateway:
        task = asyncio.create_task(gateway.chat(stream=True))
        await until(lambda: len(fleet.running) == 1)
        closing = asyncio.create_task(gateway.server.close(10.0))
        await asyncio.sleep(0.03)
        refused = await gateway.chat()
        check_error(refused, 503)
        assert text_of(events((await task).text)) == "a b c d e f g h"
        await closing
        with pytest.raises(httpx.ConnectError):
            await gateway.http.get("/health")


async def test_shutdown_ends_what_does_not_finish_in_time() -> None:
    fleet = FakeFleet(_LONG, delay_s=0.02)
    async with serving(fleet) as gateway:
        streamed = asyncio.create_task(gateway.chat(stream=True))
        whole = asyncio.create_task(gateway.chat())
        await until(lambda: len(fleet.running) == 2)
        await asyncio.sleep(0.1)
        await gateway.server.close(0.05)
        assert '"code":"unavailable"' in (await streamed).text
        check_error(await whole, 503)
        assert fleet.num_aborted == 2


async def test_many_streams_at_once_with_random_leavers() -> None:
    fleet = FakeFleet(says("a b c d e f"), per_chunk=2)
    async with serving(fleet) as gateway:

        async def one(i: int) -> None:
            if i % 3:
                assert text_of(events((await gateway.chat(stream=True)).text)) == "a b c d e f"
            else:
                await _post_and_leave(gateway, {"stream": True}, after_bytes=i * 5)

        fleet.delay_s = 0.005
        await asyncio.gather(*(one(i) for i in range(30)))
        await until(lambda: not fleet.running)
        await until(lambda: gateway.server.service.admission.in_flight == 0)


async def test_a_gateway_that_cannot_start_says_why_and_leaves_nothing() -> None:
    fleet = FakeFleet(says("x"))
    async with serving(fleet, grpc_port=0) as gateway:
        http_port, grpc_port = gateway.server.http_port, gateway.server.grpc_port
        for fields in (
            {"http_port": http_port},
            {"grpc_port": grpc_port},
            {"tls_cert_path": "/no/cert", "tls_key_path": "/no/key"},
        ):
            with pytest.raises(ConfigError) as caught:
                async with serving(fleet, **fields):
                    pass
            assert caught.value.param in fields
    with pytest.raises(BatonError, match="has not started"):
        assert gateway.server.service


async def test_metrics() -> None:
    async with serving(FakeFleet(says("a b c"))) as gateway:
        await gateway.chat()
        await gateway.chat(n=0)
        for path in ("/ready", "/baton/workers", "/metrics"):
            assert (await gateway.http.get(path)).status_code == 200
        text = (await gateway.http.get("/metrics")).text
        assert text.count("baton_requests_total{") == 2, "probes and operators are not clients"
        for line in (
            'baton_requests_total{endpoint="/v1/chat/completions",outcome="ok"} 1.0',
            'baton_requests_total{endpoint="/v1/chat/completions",outcome="invalid_value"} 1.0',
            'baton_plans_total{kind="remote",reason="remote_cheaper"} 1.0',
            "baton_ttft_seconds_count 1.0",
            "baton_e2e_seconds_count 1.0",
            "baton_requests_in_flight 0.0",
            'baton_worker_kv_blocks{role="decode",worker="d0"} 64.0',
            'baton_worker_tier_hit_blocks_total{role="decode",tier="disk",worker="d0"} 6.0',
            'baton_worker_tier_blocks{role="decode",tier="disk",worker="d0"} 5.0',
            'grammars_compiled_total{backend="xgrammar",role="decode",worker="d0"} 1.0',
            'grammars_refused_total{reason="invalid",role="decode",worker="d0"} 2.0',
            'baton_worker_grammar_cache_hits_total{role="decode",worker="d0"} 7.0',
        ):
            assert line in text, line
        num_tokens = gateway.server.service.metrics.num_generated_tokens
        assert f"baton_generated_tokens_total {float(num_tokens)}" in text
        assert f"baton_itl_seconds_count {float(num_tokens - 1)}" in text
