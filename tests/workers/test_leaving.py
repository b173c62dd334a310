"""A decode worker that leaves hands its running requests over by moving their KV."""

from __future__ import annotations

import asyncio

from tests.workers.conftest import engine_config
from tests.workers.test_pair import prompts, run_alone

from baton.decode_worker.config import DecodeWorkerConfig
from baton.decode_worker.worker import DecodeWorker
from baton.gateway.fleet import Fleet
from baton.gateway.fleet_config import FleetConfig, StaticDirectory
from baton.protos.types import GenerateRequest, Role, SamplingParams
from baton.router.config import RouterConfig


def decode_worker(name: str) -> DecodeWorker:
    return DecodeWorker(
        DecodeWorkerConfig(
            engine=engine_config(Role.DECODE), worker_id=name, lease_s=1.0, secret="shared"
        )
    )


async def test_running_requests_go_on_with_their_kv_at_another_worker() -> None:
    prompt = prompts(9)[8]
    sampling = SamplingParams(temperature=0.7, seed=11, max_tokens=300, ignore_eos=True)
    (expected,) = await asyncio.to_thread(run_alone, [(prompt, sampling)])
    leaving, staying = decode_worker("decode-0"), decode_worker("decode-1")
    members = [await leaving.start(), await staying.start()]
    directory = StaticDirectory(members[:1])
    fleet = Fleet(
        directory,
        RouterConfig(),
        gateway_id="test",
        secret="shared",
        config=FleetConfig(poll_s=0.05),
    )
    await fleet.start()
    await fleet.wait_ready(30.0)
    request = GenerateRequest(request_id="r", prompt_token_ids=prompt, sampling=sampling)
    generation = fleet.generate(request)
    tokens: list[int] = []
    done = None
    drained: asyncio.Task[None] | None = None
    async for chunk in generation:
        tokens += chunk.token_ids
        done = chunk.done or done
        if drained is None and len(tokens) > 20:
            directory.set_members(members)
            drained = asyncio.create_task(leaving.drain(0.05))
    assert drained is not None
    await drained
    assert tokens == expected
    assert generation.num_replays == 1
    assert generation.worker_id == "decode-1"
    assert done is not None
    assert done.prefilled_by == "decode-0"
    # All but what its last block holds was there already: it was moved, not computed.
    assert done.num_cached_tokens > len(prompt)
    await fleet.close()
    for worker in (leaving, staying):
        async with asyncio.timeout(20):
            while (load := await worker.load()).free_blocks != load.total_blocks:
                await asyncio.sleep(0.02)
        await worker.check_integrity()
        await worker.close()
