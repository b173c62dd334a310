"""Tenants over HTTP and gRPC: whose request it is, what they may, what an operator sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from tests.gateway.fakes import FakeFleet
from tests.gateway.serving import check_error, says, serving

from baton.gateway.auth import ApiKeys
from baton.gateway.config import GatewayConfig
from baton.gateway.limits import Admission, Deadline
from baton.gateway.seam import ProfileTrace
from baton.gateway.tenants import TenantConfig
from baton.protos import public_pb2 as pb
from baton.protos.clock import ManualClock
from baton.protos.errors import ConfigError, OverloadedError
from baton.protos.public_pb2_grpc import BatonStub

SEARCH = TenantConfig(name="search", keys=("sk-1", "sk-2"), weight=3.0)
BATCH = TenantConfig(name="batch", keys=("sk-3",), max_running=2)


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **more}


async def test_a_request_is_its_tenants_with_its_own_deadline() -> None:
    fleet = FakeFleet(says("hi"))
    async with serving(fleet, tenants=(SEARCH, BATCH), api_keys=("sk-plain",)) as served:
        body = {"prompt": "hi there"}
        for key in ("sk-2", "sk-3", "sk-plain"):
            headers = bearer(key, **{"x-baton-ttft-s": "2.5"})
            answer = await served.http.post("/v1/completions", json=body, headers=headers)
            assert answer.status_code == 200
        assert [name for name, _ in fleet.asked_by[:2]] == ["search", "batch"]
        assert fleet.asked_by[2][0].startswith("key-")
        assert "plain" not in fleet.asked_by[2][0]
        assert {ttft_s for _, ttft_s in fleet.asked_by} == {2.5}
        refused = await served.http.post("/v1/completions", json=body, headers=bearer("sk-9"))
        check_error(refused, 401)
        for wrong in ("soon", "0", "nan"):
            headers = bearer("sk-1", **{"x-baton-ttft-s": wrong})
            answer = await served.http.post("/v1/completions", json=body, headers=headers)
            assert answer.status_code == 400
            assert "ttft" in answer.json()["error"]["param"]


async def test_grpc_knows_tenants_too() -> None:
    fleet = FakeFleet(says("hi"))
    async with serving(fleet, tenants=(SEARCH,), grpc_port=0) as served:
        target = f"127.0.0.1:{served.server.grpc_port}"
        async with grpc.aio.insecure_channel(target) as channel:
            metadata = (("authorization", "Bearer sk-1"), ("x-baton-ttft-s", "1.5"))
            await BatonStub(channel).Generate(pb.GenerateRequest(prompt="a"), metadata=metadata)
    assert fleet.asked_by == [("search", 1.5)]


async def test_refusals_carry_an_honest_retry_after() -> None:
    fleet = FakeFleet(says("hi"))
    fleet.plan_error = OverloadedError("full", retry_after_s=41.2, code="queue_full")
    async with serving(fleet) as served:
        answer = await served.complete()
        error = check_error(answer, 429)
        assert error["code"] == "queue_full"
        assert answer.headers["retry-after"] == "42"


async def test_one_tenant_cannot_hold_every_place() -> None:
    admission = Admission(18, ManualClock(), shared=True)
    held = [admission.admit(Deadline(1), "flood") for _ in range(16)]
    for place in held:
        place.__enter__()
    with pytest.raises(OverloadedError, match="places that are left are for others"):
        admission.admit(Deadline(1), "flood").__enter__()
    with admission.admit(Deadline(1), "quiet"):
        assert admission.in_flight == 17
    for place in held:
        place.__exit__(None, None, None)
    alone = Admission(2, ManualClock())
    with alone.admit(Deadline(1)), alone.admit(Deadline(1)):
        assert alone.in_flight == 2


def test_keys_are_secret_and_owned() -> None:
    config = GatewayConfig(model_dir="m", tenants=(SEARCH, BATCH), api_keys=("sk-plain",))
    assert "sk-" not in repr(config)
    keys = ApiKeys(config.every_tenant)
    assert keys.check("Bearer sk-3") == "batch"
    assert ApiKeys(()).check(None) == "everybody"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tenants": (SEARCH, SEARCH)}, "tenants.1.name"),
        ({"tenants": (SEARCH,), "api_keys": ("sk-1",)}, "tenants.0.keys"),
        (
            {"tenants": (SEARCH, TenantConfig(name="other", keys=("sk-1",)))},
            "tenants.1.keys",
        ),
    ],
)
def test_tenants_that_contradict_each_other_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GatewayConfig(model_dir="m", **fields)
    assert caught.value.param == param
    assert "sk-" not in caught.value.message


class ScriptedControl:
    """Remembers what it was told to apply."""

    def __init__(self) -> None:
        self.applied: list[Mapping[str, Any]] = []
        self.targets = {"decode": 3}

    async def config(self) -> dict[str, Any]:
        return {"name": "baton"}

    async def scaling(self) -> dict[str, Any]:
        return {"pools": {}, "latest": [], "changes": []}

    async def apply_scaling(self, pools: Mapping[str, Any]) -> dict[str, Any]:
        self.applied.append(pools)
        return {"changed": ["decode.max_replicas: 1 -> 2"]}

    async def profile(self, worker: str, *, seconds: float, steps: int) -> ProfileTrace:
        return ProfileTrace(worker, steps, b"trace")


async def test_only_admins_change_the_cluster() -> None:
    control, wanted = ScriptedControl(), {"decode": {"max_replicas": 2}}
    admin = TenantConfig(name="sre", keys=("sk-sre",), admin=True)
    fleet = FakeFleet(says("hi"))
    async with serving(fleet, control=control, tenants=(SEARCH, admin)) as served:
        path = "/baton/scaling/apply"
        refused = await served.http.post(path, json=wanted, headers=bearer("sk-1"))
        error = check_error(refused, 403)
        assert "admin: true" in error["message"]
        check_error(await served.http.post(path, json=wanted), 401)
        wrong = await served.http.post(path, content=b"[1]", headers=bearer("sk-sre"))
        check_error(wrong, 400)
        assert control.applied == []
        answer = await served.http.post(path, json=wanted, headers=bearer("sk-sre"))
        assert answer.json() == {"changed": ["decode.max_replicas: 1 -> 2"]}
        assert control.applied == [wanted]
        path, asked = "/baton/profile", {"worker": "d0", "seconds": 1.0, "steps": 7}
        check_error(await served.http.post(path, json=asked, headers=bearer("sk-1")), 403)
        profile = await served.http.post(path, json=asked, headers=bearer("sk-sre"))
        assert (profile.content, profile.headers["x-baton-steps"]) == (b"trace", "7")
        seen = await served.http.get("/baton/config", headers=bearer("sk-1"))
        assert seen.json() == {"name": "baton"}
    async with serving(fleet, control=control) as served:
        open_to_all = await served.http.post("/baton/scaling/apply", json=wanted)
        assert open_to_all.status_code == 200
        assert (await served.http.get("/baton/scaling")).json()["latest"] == []
        metrics = (await served.http.get("/metrics")).text
        assert 'baton_pool_target_replicas{pool="decode"} 3.0' in metrics
    async with serving(fleet) as served:
        check_error(await served.http.get("/baton/scaling"), 404)
