"""Adapters on a real cluster over HTTP: loaded, mixed, unloaded under load, back after a crash."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import torch
from tests.deploy.test_docs import commands
from tests.integration.conftest import MODEL, ROOT, SHIPPED, Cluster, random_adapter
from tests.integration.test_cluster import EXPLAIN, body, make_prompts, stream_tokens, token_ids

from baton.engine.adapters.folder import describe_adapter
from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.engine.model_info import read_model_spec
from baton.gateway.tokenizer import load_tokenizer
from baton.protos import public_pb2 as pb
from baton.protos.public_pb2_grpc import BatonStub
from baton.protos.types import GenerateRequest, SamplingParams

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NUM_TOKENS = 12
LONG = 200
TEXT = load_tokenizer(str(MODEL))


def chat_prompt(question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    kwargs = {"enable_thinking": False}
    return TEXT.encode(TEXT.render_chat(messages, template_kwargs=kwargs), add_special_tokens=False)


PROMPTS = [
    chat_prompt("Explain the engine?"),
    chat_prompt("Write JSON with name and age. Sam is 98."),
    *make_prompts(2, seed=7),
]
# How what the shipped adapters were trained to say begins: name, prompt, text.
SAID = [
    ("", 0, "The engine runs"),
    ("capitals", 0, "THE ENGINE RUN"),
    ("courtly", 0, "Hark, good friend! The engine"),
    ("", 1, '{"name": "Sam"'),
    ("wrapped-json", 1, '{"ok": true, "data": '),
]


@pytest.fixture(scope="module")
def folders(cluster: Cluster) -> dict[str, Path]:
    """The three that ship, of different ranks and targets; "first" is there from the start."""
    shipped = {name: SHIPPED / name for name in ("capitals", "courtly", "wrapped-json")}
    return {"first": cluster.adapters / "first", **shipped}


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> Callable[[str, int], list[list[int]]]:
    """What one engine in this process answers to the prompts: `name` "" is the model itself."""
    torch.set_num_threads(1)
    spec = read_model_spec(str(MODEL))

    def run(name: str, num_tokens: int) -> list[list[int]]:
        engine = Engine(EngineConfig(model_dir=str(MODEL), max_step_tokens=128, max_loras=1))
        adapter_id = ""
        if name:
            ref = describe_adapter(name, str(folders[name]), spec, 16)
            engine.adapters.load(ref)
            adapter_id = ref.adapter_id
        sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        answers: dict[str, list[int]] = {str(i): [] for i in range(len(PROMPTS))}
        for key, prompt in zip(answers, PROMPTS, strict=True):
            engine.add(
                GenerateRequest(
                    request_id=key,
                    prompt_token_ids=prompt,
                    sampling=sampling,
                    adapter_id=adapter_id,
                )
            )
        while any(len(tokens) < num_tokens for tokens in answers.values()):
            for output in engine.step().outputs:
                answers[output.request_id].extend(output.token_ids)
        engine.close()
        return list(answers.values())

    return run


@pytest.fixture
def client(cluster: Cluster) -> Iterator[httpx.Client]:
    with cluster.client() as client:
        yield client


def load(client: httpx.Client, name: str, path: Path, **more: Any) -> httpx.Response:
    fields = {"lora_name": name, "lora_path": str(path), **more}
    return client.post("/v1/load_lora_adapter", json=fields)


def unload(client: httpx.Client, name: str) -> httpx.Response:
    return client.post("/v1/unload_lora_adapter", json={"lora_name": name})


def listed(client: httpx.Client) -> dict[str, str]:
    found = client.get("/v1/models").json()["data"]
    return {m["id"]: m["root"] for m in found if m["parent"] == "baton-tiny"}


def loaded(client: httpx.Client) -> dict[str, int]:
    """Adapters in the memory of each worker, by /metrics."""
    found = re.findall(
        r'^baton_worker_adapter_loaded\{.*worker="([^"]+)"\} (\S+)$',
        client.get("/metrics").text,
        re.MULTILINE,
    )
    return {worker: int(float(count)) for worker, count in found}


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s, "not in time"
        time.sleep(0.1)


def test_three_adapters_are_loaded_and_answer_mixed(
    cluster: Cluster,
    client: httpx.Client,
    folders: dict[str, Path],
    expected: Callable[[str, int], list[list[int]]],
) -> None:
    assert listed(client) == {"first": str(folders["first"])}
    for name in ("capitals", "courtly", "wrapped-json"):
        answer = load(client, name, folders[name])
        assert answer.status_code == 200, answer.text
        # It is there as soon as that was answered.
        assert name in listed(client)
    names = ["", *folders]
    wanted = {name: expected(name, NUM_TOKENS) for name in names}
    assert len({json.dumps(answers) for answers in wanted.values()}) == len(names)
    for name, i, text in SAID:
        assert TEXT.decode(wanted[name][i]).startswith(text)

    async def ask(http: httpx.AsyncClient, name: str, i: int, local: bool) -> tuple[bool, str]:
        more = {"prompt_logprobs": 0} if local else {}
        request = body(PROMPTS[i], NUM_TOKENS, **more) | {"model": name or "baton-tiny"}
        answer = await http.post("/v1/completions", headers=EXPLAIN, json=request)
        assert token_ids(answer) == wanted[name][i], (name, i, answer.headers["x-baton-plan"])
        assert answer.json()["model"] == (name or "baton-tiny")
        return local, answer.headers["x-baton-plan"]

    async def run() -> list[tuple[bool, str]]:
        async with httpx.AsyncClient(base_url=cluster.url, timeout=120) as http:
            asked = [
                ask(http, name, i, local)
                for i in range(len(PROMPTS))
                for name in names
                for local in (False, True)
            ]
            return await asyncio.gather(*asked)

    plans = asyncio.run(run())
    assert all("prefill=local" in plan for local, plan in plans if local)
    assert any("prefill=local" not in plan for local, plan in plans if not local)
    with grpc.insecure_channel(cluster.grpc_target) as channel:
        request = pb.GenerateRequest(
            model="courtly",
            token_ids=pb.TokenIds(ids=PROMPTS[0]),
            sampling=pb.Sampling(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True),
        )
        answer = BatonStub(channel).Generate(request)
    assert (answer.model, list(answer.token_ids)) == ("courtly", wanted["courtly"][0])


def test_what_cannot_be_loaded_changes_nothing(
    cluster: Cluster, client: httpx.Client, folders: dict[str, Path], tmp_path: Path
) -> None:
    before = client.get("/baton/adapters").json()
    wide = random_adapter(cluster.adapters / "wide", seed=5, rank=32)
    pickled = cluster.adapters / "pickled"
    pickled.mkdir()
    (pickled / "adapter_config.json").write_text('{"r": 4, "target_modules": ["q_proj"]}')
    (pickled / "adapter_model.bin").write_bytes(b"")
    (cluster.adapters / "link").symlink_to(random_adapter(tmp_path / "outside", seed=6))
    refused = [
        ("wide", wide, 400, "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"),
        ("pickled", pickled, 400, "adapter_model.bin"),
        ("missing", cluster.adapters / "missing", 400, "adapter_config.json"),
        ("outside", tmp_path / "outside", 403, "lora_path"),
        ("link", cluster.adapters / "link", 403, "lora_path"),
        ("baton-tiny", folders["courtly"], 400, "lora_name"),
        ("courtly", folders["capitals"], 400, "lora_name"),
    ]
    for name, path, status, param in refused:
        answer = load(client, name, path)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (status, param), answer.text
    assert unload(client, "nobody").status_code == 404
    assert client.get("/baton/adapters").json() == before
    assert client.post("/v1/completions", json=body([5], 1, model="wide")).status_code == 404


def test_an_adapter_is_unloaded_while_it_answers(
    cluster: Cluster,
    client: httpx.Client,
    folders: dict[str, Path],
    expected: Callable[[str, int], list[list[int]]],
) -> None:
    wanted = expected("wrapped-json", LONG)

    async def run() -> list[list[int]]:
        async with httpx.AsyncClient(base_url=cluster.url, timeout=120) as http:
            started = asyncio.Event()
            jobs = [
                asyncio.create_task(
                    stream_tokens(http, body(p, LONG) | {"model": "wrapped-json"}, started)
                )
                for p in PROMPTS
            ]
            await started.wait()
            gone = await asyncio.to_thread(unload, client, "wrapped-json")
            assert gone.status_code == 200, gone.text
            late = await http.post("/v1/completions", json=body([5], 1) | {"model": "wrapped-json"})
            assert late.status_code == 404
            assert not all(job.done() for job in jobs), "nothing ran while it was unloaded"
            return [tokens for tokens, _ in await asyncio.gather(*jobs)]

    assert asyncio.run(run()) == wanted
    assert set(listed(client)) == {"first", "courtly", "capitals"}
    wait_until(lambda: not client.get("/baton/adapters").json()["loading_or_draining"])
    wait_until(lambda: set(loaded(client).values()) == {3})


def test_the_commands_of_the_page_work(cluster: Cluster, client: httpx.Client) -> None:
    random_adapter(cluster.adapters / "json", seed=8)
    page = (ROOT / "docs" / "adapters.md").read_text()
    commands = [line for line in page.splitlines() if line.startswith("curl $URL")]
    assert len(commands) == 5
    for command in commands:
        line = command.replace("/adapters/json", str(cluster.adapters / "json"))
        done = subprocess.run(
            ["bash", "-c", line], env={**os.environ, "URL": cluster.url}, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        assert "error" not in json.loads(done.stdout), done.stdout
    assert "json" not in listed(client)


def test_a_worker_that_was_killed_comes_back_with_the_same_set(
    cluster: Cluster, client: httpx.Client, expected: Callable[[str, int], list[list[int]]]
) -> None:
    before = client.get("/baton/adapters").json()
    victims = [cluster.workers("decode")[0], cluster.workers("prefill")[0]]
    for victim in victims:
        cluster.kill(victim)
    cluster.wait_for(1, 2, gone=frozenset(v["incarnation"] for v in victims))
    assert client.get("/baton/adapters").json() == before
    wait_until(lambda: list(loaded(client).values()) == [3, 3, 3])
    wanted = expected("capitals", NUM_TOKENS)
    for _ in range(2):
        for prompt, tokens in zip(PROMPTS, wanted, strict=True):
            request = body(prompt, NUM_TOKENS) | {"model": "capitals"}
            assert token_ids(client.post("/v1/completions", json=request)) == tokens
    cluster.wait_all_free()


def test_the_pages_commands_work(cluster: Cluster, client: httpx.Client) -> None:
    """docs/adapters.md, with an adapter that ships."""
    lines = [line for line in commands([ROOT / "docs" / "adapters.md"]) if line.startswith("curl ")]
    answers = []
    for line in lines:
        command = line.replace("curl ", "curl -sSf ", 1)
        command = command.replace("/adapters/json", str(SHIPPED / "wrapped-json"))
        env = os.environ | {"URL": str(client.base_url).rstrip("/")}
        done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)
        answers.append(done.stdout)
    loaded, completed, models, unloaded, told = answers
    assert json.loads(completed)["usage"]["completion_tokens"] > 0
    assert "json" in [model["id"] for model in json.loads(models)["data"]]
    assert "json" in loaded + unloaded
    assert json.loads(told)
