"""A gateway, one prefill and two decode workers on a real Ray: same tokens, whatever dies."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
import torch
from tests.integration.conftest import MODEL, Cluster

from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.protos.constraints import Grammar, GrammarKind
from baton.protos.types import GenerateRequest, SamplingParams

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

EXPLAIN = {"x-baton-explain": "1"}
# Words of five letters and the number of each, longer than any answer here.
FORM = r"([a-e]{5} [0-9]; ){300}"


def make_prompts(count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    lengths = [3, 15, 16, 17, 40, 64, 100, 129, 200, 300]
    return [[rng.randrange(20, 1000) for _ in range(rng.choice(lengths))] for _ in range(count)]


def run_alone(
    prompts: list[list[int]], sampling: SamplingParams, grammars: Sequence[Grammar | None] = ()
) -> list[list[int]]:
    """What one engine in this process answers, without any cluster; `grammars`: of each prompt."""
    torch.set_num_threads(1)
    engine = Engine(EngineConfig(model_dir=str(MODEL), max_step_tokens=128))
    answers: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
    for i, prompt in enumerate(prompts):
        engine.add(
            GenerateRequest(
                request_id=str(i),
                prompt_token_ids=prompt,
                sampling=sampling,
                grammar=grammars[i] if grammars else None,
            )
        )
    while engine.has_work():
        for output in engine.step().outputs:
            answers[output.request_id].extend(output.token_ids)
    engine.close()
    return list(answers.values())


def body(prompt: list[int], max_tokens: int, **more: Any) -> dict[str, Any]:
    return {
        "model": "baton-tiny",
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **more,
    }


def token_ids(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    found: list[int] = answer.json()["choices"][0]["token_ids"]
    return found


async def stream_tokens(
    client: httpx.AsyncClient, request: dict[str, Any], started: asyncio.Event | None = None
) -> tuple[list[int], str]:
    """Token ids and text of a streamed completion."""
    tokens: list[int] = []
    text = ""
    async with client.stream("POST", "/v1/completions", json={**request, "stream": True}) as got:
        assert got.status_code == 200
        async for line in got.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            assert "error" not in chunk, chunk
            for choice in chunk["choices"]:
                tokens += choice.get("token_ids") or []
                text += choice["text"]
            if tokens and started is not None:
                started.set()
    return tokens, text


def test_the_first_answer_is_right_and_comes_through_a_remote_prefill(cluster: Cluster) -> None:
    with cluster.client() as client:
        answer = client.post(
            "/v1/chat/completions",
            headers=EXPLAIN,
            json={
                "model": "baton-tiny",
                "messages": [{"role": "user", "content": "What is 17 + 25?"}],
                "temperature": 0,
                "chat_template_kwargs": {"enable_thinking": False},
            },
        )
    assert answer.status_code == 200, answer.text
    assert "42" in answer.json()["choices"][0]["message"]["content"]
    assert "prefill=local" not in answer.headers["x-baton-plan"]


def test_remote_local_and_single_engine_give_the_same_tokens(cluster: Cluster) -> None:
    prompts = make_prompts(50, seed=1)
    expected = run_alone(prompts, SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True))
    num_remote = num_local = 0
    with cluster.client() as client:
        for prompt, tokens in zip(prompts, expected, strict=True):
            remote = client.post("/v1/completions", headers=EXPLAIN, json=body(prompt, 24))
            assert token_ids(remote) == tokens
            num_remote += "prefill=local" not in remote.headers["x-baton-plan"]
            # Prompt log-probabilities need every position computed, which is done locally.
            request = body(prompt, 24, prompt_logprobs=0)
            local = client.post("/v1/completions", headers=EXPLAIN, json=request)
            assert token_ids(local) == tokens
            num_local += "prefill=local" in local.headers["x-baton-plan"]
    assert num_local == len(prompts)
    assert num_remote >= len(prompts) * 0.9


def test_a_prefill_worker_killed_mid_transfer_costs_no_request(cluster: Cluster) -> None:
    prompts = [prompt * 4 for prompt in make_prompts(8, seed=2)]
    expected = run_alone(prompts, SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
    (victim,) = cluster.workers("prefill")
    killer = threading.Timer(0.15, cluster.kill, [victim])

    async def all_at_once() -> list[list[int]]:
        async with httpx.AsyncClient(base_url=cluster.url, timeout=120) as client:
            killer.start()
            jobs = [stream_tokens(client, body(prompt, 8)) for prompt in prompts]
            return [tokens for tokens, _ in await asyncio.gather(*jobs)]

    assert asyncio.run(all_at_once()) == expected
    killer.join()
    cluster.wait_for(1, 2, gone=frozenset({victim["incarnation"]}))
    with cluster.client() as client:
        after = client.post("/v1/completions", headers=EXPLAIN, json=body([7] * 70, 4))
    assert "prefill=local" not in after.headers["x-baton-plan"]
    cluster.wait_all_free()


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.9, "seed": 11, "top_p": 0.9}], ids=["greedy", "seeded"]
)
def test_a_decode_worker_killed_mid_stream_is_not_noticed(
    cluster: Cluster, sampling: dict[str, Any]
) -> None:
    prompts = make_prompts(6, seed=3)
    params = SamplingParams(
        **{"temperature": 0.0, **sampling, "max_tokens": 300, "ignore_eos": True}
    )
    # Every other answer has a form, of which the next worker has to know how much is written.
    forms = [{"guided_regex": FORM} if i % 2 else {} for i in range(len(prompts))]
    grammars = [Grammar(kind=GrammarKind.REGEX, source=FORM) if form else None for form in forms]
    expected = run_alone(prompts, params, grammars)
    victim = cluster.workers("decode")[0]

    async def run() -> list[list[int]]:
        async with httpx.AsyncClient(base_url=cluster.url, timeout=240) as client:
            started = asyncio.Event()
            jobs = [
                asyncio.create_task(
                    stream_tokens(client, body(p, 300, **sampling, **form), started)
                )
                for p, form in zip(prompts, forms, strict=True)
            ]
            await started.wait()
            await asyncio.to_thread(cluster.kill, victim)
            return [tokens for tokens, _ in await asyncio.gather(*jobs)]

    assert asyncio.run(run()) == expected
    cluster.wait_for(1, 2, gone=frozenset({victim["incarnation"]}))
    cluster.wait_all_free()


def test_random_disconnects_leave_every_block_free(cluster: Cluster) -> None:
    rng = random.Random(4)
    prompts = make_prompts(64, seed=5)
    finished = 0

    async def one(client: httpx.AsyncClient, prompt: list[int], patience_s: float) -> None:
        nonlocal finished
        try:
            async with asyncio.timeout(patience_s):
                await stream_tokens(client, body(prompt, 60))
                finished += 1
        except TimeoutError:
            pass

    async def run() -> None:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=cluster.url, timeout=120, limits=limits) as client:
            patience = [rng.uniform(0.05, 6.0) if i % 2 else 120.0 for i in range(len(prompts))]
            await asyncio.gather(*map(one, [client] * len(prompts), prompts, patience))

    asyncio.run(run())
    assert finished >= len(prompts) // 2
    cluster.wait_all_free()


def test_the_official_client_streams(cluster: Cluster) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(
            model="baton-tiny",
            messages=[{"role": "user", "content": "Who are you?"}],
            stream=True,
            stream_options={"include_usage": True},
            max_tokens=40,
            temperature=0,
        )
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text
    assert chunks[-1].usage.completion_tokens > 0


def test_metrics_tell_what_happened(cluster: Cluster) -> None:
    with cluster.client() as client:
        client.post("/v1/completions", json=body([5] * 40, 4))
        time.sleep(0.1)
        text = client.get("/metrics").text
    for name in ("baton_requests_total", "baton_ttft_seconds", "baton_plans_total"):
        assert name in text
