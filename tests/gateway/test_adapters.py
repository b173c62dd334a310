"""Adapters over HTTP and gRPC: names, management, and what a request keeps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import grpc
from tests.gateway.fakes import DECODE, FakeFleet
from tests.gateway.serving import says, serving

from baton.gateway.adapters import AdapterTable
from baton.gateway.tenants import TenantConfig
from baton.protos import public_pb2 as pb
from baton.protos.adapters import AdapterLoad, AdapterRef
from baton.protos.errors import AdapterError
from baton.protos.public_pb2_grpc import BatonStub

SQL = AdapterRef(name="sql", adapter_id="a" * 32, path="/adapters/sql", rank=8)


class Control:
    """Keeps what it was asked for, and answers `sql` only."""

    def __init__(self) -> None:
        self.table = AdapterTable()
        self.table.replace(1, [SQL])
        self.asked: list[tuple[Any, ...]] = []

    async def load(self, name: str, path: str, *, force: bool) -> Mapping[str, Any]:
        self.asked.append((name, path, force))
        if path == "/bad":
            raise AdapterError("tensor q_proj.lora_A has another shape", param="q_proj.lora_A")
        return {"status": "loaded"}

    async def unload(self, name: str) -> Mapping[str, Any]:
        self.asked.append((name,))
        return {"status": "unloaded"}

    async def status(self) -> Mapping[str, Any]:
        return {"generation": 1}


async def test_model_picks_an_adapter_over_http() -> None:
    fleet, control = FakeFleet(says("yes")), Control()
    load = AdapterLoad(resident=(SQL.adapter_id, "gone"), num_rows=(3, 1), num_evictions=4)
    fleet.adapter_loads = [(DECODE, load)]
    async with serving(fleet, adapters=control) as served:
        chat = await served.chat(model="sql")
        assert chat.status_code == 200
        assert chat.json()["model"] == "sql"
        text = await served.complete(model="sql")
        assert text.json()["model"] == "sql"
        base = await served.chat()
        assert base.json()["model"] == "baton-tiny"
        missing = await served.chat(model="other")
        assert missing.status_code == 404
        assert "use baton-tiny, sql" in missing.json()["error"]["message"]
        listed = (await served.http.get("/v1/models")).json()["data"]
        one = (await served.http.get("/v1/models/sql")).json()
        metrics = (await served.http.get("/metrics")).text
    assert [r.adapter_id for r in fleet.requests] == [SQL.adapter_id] * 2 + [""]
    assert [(m["id"], m["root"], m["parent"]) for m in listed] == [
        ("baton-tiny", "baton-tiny", None),
        ("sql", "/adapters/sql", "baton-tiny"),
    ]
    assert one == listed[1]
    assert 'baton_adapter_requests_total{adapter="sql"} 2.0' in metrics
    assert 'baton_adapter_requests_active{adapter="sql"} 0.0' in metrics
    worker = 'role="decode",worker="d0"'
    assert f'baton_worker_adapter_rows{{adapter="sql",{worker}}} 3.0' in metrics
    assert f'baton_worker_adapter_rows{{adapter="gone",{worker}}} 1.0' in metrics
    assert f"baton_worker_adapter_resident{{{worker}}} 2.0" in metrics
    assert f"baton_worker_adapter_evictions_total{{{worker}}} 4.0" in metrics


async def test_model_picks_an_adapter_over_grpc() -> None:
    fleet, control = FakeFleet(says("yes")), Control()
    async with contextlib.AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving(fleet, adapters=control, grpc_port=0))
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{served.server.grpc_port}")
        stub = BatonStub(await stack.enter_async_context(channel))
        answer = await stub.Generate(pb.GenerateRequest(model="sql", prompt="hi"))
        assert answer.model == "sql"
        models = (await stub.Models(pb.ModelsRequest())).models
    assert [r.adapter_id for r in fleet.requests] == [SQL.adapter_id]
    assert [(m.id, m.root, m.parent) for m in models] == [
        ("baton-tiny", "baton-tiny", ""),
        ("sql", "/adapters/sql", "baton-tiny"),
    ]


async def test_a_request_keeps_the_content_that_its_name_stood_for() -> None:
    fleet, control = FakeFleet(says("a long answer, word by word")), Control()
    fleet.delay_s = 0.02
    async with serving(fleet, adapters=control) as served:
        running = asyncio.create_task(served.chat(model="sql", n=2))
        while not fleet.requests:
            await asyncio.sleep(0.005)
        control.table.replace(2, [])
        assert control.table.leftover() == {SQL.adapter_id}
        assert (await served.chat(model="sql")).status_code == 404
        answer = await running
        assert len(answer.json()["choices"]) == 2
        assert control.table.leftover() == frozenset()
    assert {r.adapter_id for r in fleet.requests} == {SQL.adapter_id}


async def test_loading_and_unloading_have_vllms_bodies() -> None:
    control = Control()
    async with serving(FakeFleet(says("yes")), adapters=control) as served:

        async def post(path: str, **body: Any) -> tuple[int, Any]:
            answer = await served.http.post(f"/v1/{path}_lora_adapter", json=body)
            found = answer.json()
            return answer.status_code, found.get("status") or found["error"]["param"]

        assert await post("load", lora_name="x", lora_path="/x") == (200, "loaded")
        assert await post("load", lora_name="x", lora_path="/x", force=True) == (200, "loaded")
        inplace = {"lora_name": "x", "lora_path": "/x", "load_inplace": True}
        assert await post("load", **inplace) == (200, "loaded")
        assert await post("unload", lora_name="x") == (200, "unloaded")
        assert await post("load", lora_name="x", lora_path="/bad") == (400, "q_proj.lora_A")
        assert await post("load", lora_name="x") == (400, "lora_path")
        assert await post("load", lora_name="", lora_path="/x") == (400, "lora_name")
        assert await post("load", lora_name="x", lora_path="/x", rank=3) == (400, "rank")
        assert await post("unload", lora_name="x", lora_int_id=3) == (400, "lora_int_id")
        assert (await served.http.get("/baton/adapters")).json() == {"generation": 1}
    assert control.asked == [
        ("x", "/x", False),
        ("x", "/x", True),
        ("x", "/x", True),
        ("x",),
        ("x", "/bad", False),
    ]


async def test_only_admins_change_adapters() -> None:
    tenants = (
        TenantConfig(name="ops", keys=("root-key",), admin=True),
        TenantConfig(name="user", keys=("user-key",)),
    )
    control = Control()
    async with serving(FakeFleet(says("yes")), adapters=control, tenants=tenants) as served:
        body = {"lora_name": "x", "lora_path": "/x"}
        for key, status in (("user-key", 403), ("none", 401), ("root-key", 200)):
            headers = {"authorization": f"Bearer {key}"}
            answer = await served.http.post("/v1/load_lora_adapter", json=body, headers=headers)
            assert answer.status_code == status
    assert control.asked == [("x", "/x", False)]


async def test_without_adapters_the_endpoints_say_how_to_have_them() -> None:
    async with serving(FakeFleet(says("yes"))) as served:
        answer = await served.http.post("/v1/load_lora_adapter", json={})
        assert answer.status_code == 404
        assert "--max-loras" in answer.json()["error"]["message"]
