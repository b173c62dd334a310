"""Profiles of live workers, and what their logs say of requests."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging

import pytest
from tests.workers.conftest import Pair
from tests.workers.probe import Probe
from tests.workers.test_pair import GREEDY, prompts

from baton.cluster.profiling import find_worker, profile_worker
from baton.protos.errors import (
    AuthenticationError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
)
from baton.protos.types import Member, Role

SECRET = "of the test"


async def test_both_pools_are_profiled_while_they_serve(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="baton")
    async with Probe(pair.decode_member) as gateway:
        for member, limit in ((pair.decode_member, 5), (pair.prefill_member, 1)):
            asked = asyncio.create_task(profile_worker(member, SECRET, seconds=20, steps=limit))
            while not asked.done():
                handle = gateway.submit(prompts(9)[8], GREEDY, prefill=[pair.prefill_member])
                await gateway.wait(handle)
            trace = await asked
            assert (trace.worker_id, trace.num_steps) == (member.worker_id, limit)
            events = json.loads(gzip.decompress(trace.data))["traceEvents"]
            names = {event.get("name") for event in events}
            assert {f"ProfilerStep#{i}" for i in range(limit)} <= names
            assert any(str(name).startswith("aten::") for name in names)
    told = [getattr(record, "baton_fields", {}) for record in caplog.records]
    of_first = [one for one in told if one.get("request_id") == "request-1"]
    assert [one["outcome"] for one in of_first] == ["ok", "ok"], "of both workers"
    assert of_first[0]["attempt"] == of_first[1]["attempt"]
    assert {one.get("prefilled_by") for one in of_first} == {None, "prefill-0"}


async def test_an_idle_worker_is_let_go_after_its_seconds_and_others_are_refused(
    pair: Pair,
) -> None:
    member = pair.decode_member
    idle = asyncio.create_task(profile_worker(member, SECRET, seconds=1.0, steps=5))
    with pytest.raises(AuthenticationError, match="does not know"):
        await profile_worker(member, "another", seconds=1.0, steps=5)
    with pytest.raises(OverloadedError, match="profiled already"):
        await profile_worker(member, SECRET, seconds=1.0, steps=5)
    assert (await idle).num_steps == 0
    for seconds, steps in ((0.0, 5), (61.0, 5), (1.0, 0), (1.0, 1001)):
        with pytest.raises(InvalidRequestError):
            await profile_worker(member, SECRET, seconds=seconds, steps=steps)


def test_a_worker_is_named_by_how_its_id_begins() -> None:
    workers = [
        Member(worker_id=f"{role.value}-0", incarnation="i", role=role, address="h:1", model="m")
        for role in (Role.PREFILL, Role.DECODE)
    ]
    assert find_worker(workers, "dec") is workers[1]
    with pytest.raises(NotFoundError, match="prefill-0"):
        find_worker(workers, "encode")
    with pytest.raises(NotFoundError, match="2 workers"):
        find_worker([*workers, *workers], "dec")
