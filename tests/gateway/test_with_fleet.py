"""The gateway over the real Fleet and a stub worker on the real wire."""

from __future__ import annotations

import httpx
from benchmarks.stub_worker import stub_token
from tests.gateway.fleet_fixtures import fleet_of, stub
from tests.gateway.serving import MODEL_DIR, events, text_of, tokenizer, until

from baton.gateway.config import GatewayConfig
from baton.gateway.server import GatewayServer

_PROMPT = [80, 81, 82]
_VOCAB = 1024


def _answer(max_tokens: int) -> str:
    ids = [stub_token(_PROMPT, position, _VOCAB) for position in range(max_tokens)]
    return tokenizer().decode(ids, skip_special_tokens=True)


async def test_streams_and_disconnects_reach_the_worker() -> None:
    config = GatewayConfig(model_dir=MODEL_DIR, http_port=0, grpc_port=None)
    async with stub(vocab_size=_VOCAB) as (worker, member), fleet_of(member) as fleet:
        server = GatewayServer(config, fleet, tokenizer=tokenizer())
        await server.start()
        base_url = f"http://127.0.0.1:{server.http_port}"
        async with httpx.AsyncClient(base_url=base_url, timeout=20) as http:
            assert (await http.get("/ready")).status_code == 200
            body = {"prompt": _PROMPT, "max_tokens": 30, "stream": True, "ignore_eos": True, "n": 2}
            response = await http.post(
                "/v1/completions", json=body, headers={"x-baton-explain": "1"}
            )
            assert response.headers["x-baton-plan"].startswith("decode=d0 prefill=local")
            chunks = events(response.text)
            assert [text_of(chunks, i) for i in range(2)] == [_answer(30)] * 2
            long = {**body, "max_tokens": 50_000}
            async with http.stream("POST", "/v1/completions", json=long) as running:
                await anext(running.aiter_raw())
                await until(lambda: worker.num_running == 2)
            await until(lambda: worker.num_running == 0)
            assert server.service.admission.in_flight == 0
            metrics = (await http.get("/metrics")).text
            assert 'baton_worker_running{role="decode",worker="d0"}' in metrics
        await server.close(0.0)
