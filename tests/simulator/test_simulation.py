from __future__ import annotations

from dataclasses import replace

import pytest
from tests.simulator.helpers import config, times, trace

from baton.router.config import RouterConfig
from baton.simulator.mixes import MIXES
from baton.simulator.simulation import Simulation, simulate
from baton.simulator.synthetic import synthesize


def test_a_remote_prefill_takes_handshake_prefill_and_transfer() -> None:
    model = times(chunk_tokens=1024)
    requests = trace((1.0, 2048, 3))
    simulation = Simulation(requests, config("always_remote", times=model))
    simulation.run()
    job = simulation.jobs[0]
    computed_s = 1.0 + model.handshake_s + model.prefill_pool.prefill.predict(2048)
    assert job.first_s == pytest.approx(computed_s)
    # The first chunk's KV moved while the second was computed.
    delivered_s = computed_s + model.transfer.predict(1024 * model.kv_bytes_per_token)
    decode = model.decode_pool.decode
    assert job.finish_s == pytest.approx(
        delivered_s + decode.predict(1, 2048) + decode.predict(1, 2049)
    )
    assert not job.local


def test_what_the_decode_worker_holds_is_not_moved_again() -> None:
    model = times(chunk_tokens=8192)
    requests = trace((0.0, 4096, 2), (10.0, 4096, 2), prefix=6)
    simulation = Simulation(requests, config("always_remote", times=model))
    simulation.run()
    second = simulation.jobs[1]
    assert second.num_cached == 6 * 512
    computed_s = 10.0 + model.handshake_s + model.prefill_pool.prefill.predict(1024, 3072)
    assert second.first_s == pytest.approx(computed_s)
    moved_s = model.transfer.predict(1024 * model.kv_bytes_per_token)
    step_s = model.decode_pool.decode.predict(1, 4096)
    assert second.finish_s == pytest.approx(computed_s + moved_s + step_s)


def test_requests_wait_for_memory_at_the_decode_worker() -> None:
    requests = trace((0.0, 4096, 200), (0.0, 4096, 2))
    simulation = Simulation(
        requests, config("always_remote", times=times(), kv_capacity_tokens=5000)
    )
    outcome = simulation.run()
    first, second = simulation.jobs
    assert outcome.num_failed == 0
    # Computed meanwhile: it only has to be said where its KV goes.
    assert second.first_s == pytest.approx(first.finish_s)


@pytest.mark.parametrize("policy", ["cost", "round_robin", "always_remote", "always_local"])
def test_every_request_ends_and_nothing_is_left(policy: str) -> None:
    requests = synthesize("mixed", replace(MIXES["mixed"], duration_s=60.0), seed=3)
    small = config(policy, prefill=2, decode=2, times=times(), kv_capacity_tokens=150_000)
    simulation = Simulation(requests, small)
    outcome = simulation.run()
    assert outcome.num_failed == 0
    assert all(job.first_s >= job.request.arrival_s for job in simulation.jobs)
    assert all(job.finish_s >= job.first_s for job in simulation.jobs)
    assert simulation.gaps.total == pytest.approx(
        sum(job.request.num_output_tokens - 1 for job in simulation.jobs)
    )
    for worker in simulation.fleet.workers.values():
        worker.check_integrity()
        assert worker.num_requests == 0
    simulation.fleet.index.check_integrity()


def test_the_same_seed_gives_the_same_outcome() -> None:
    requests = synthesize("mixed", replace(MIXES["mixed"], duration_s=60.0), seed=3)
    fleet = config(prefill=2, decode=3, seed=7)
    assert simulate(requests, fleet) == simulate(requests, fleet)


def test_slos_decide_what_is_good() -> None:
    requests = trace((0.0, 8192, 20), (0.0, 8192, 20))
    for ttft_slo_s, itl_slo_s, share in ((0.3, 0.05, 0.5), (1.0, 0.05, 1.0), (1.0, 0.001, 0.0)):
        router = RouterConfig(policy="always_remote", ttft_slo_s=ttft_slo_s, itl_slo_s=itl_slo_s)
        fleet = config(times=times(chunk_tokens=8192), router=router)
        assert simulate(requests, fleet).attainment == share


def test_gpu_hours_are_those_of_all_workers() -> None:
    requests = trace((0.0, 512, 10), (3600.0, 512, 10))
    outcome = simulate(requests, config(prefill=2, decode=1, gpus_per_worker=4))
    assert outcome.gpu_hours == pytest.approx(12, rel=1e-3)


def test_a_prompt_without_room_goes_to_the_next_prefill_worker() -> None:
    # Whoever holds the memory runs for longer than a reservation is waited for.
    requests = trace((0.0, 4096, 900), (1.0, 4096, 2))
    fleet = config(
        "always_remote", times=times(), prefill=2, kv_capacity_tokens=5100, reserve_timeout_s=1.0
    )
    simulation = Simulation(requests, fleet)
    outcome = simulation.run()
    first, second = simulation.jobs
    assert outcome.num_failed == 0
    # With no target left it is computed where it is decoded, when there is room.
    assert second.first_s > first.finish_s
    for worker in simulation.fleet.workers.values():
        assert worker.num_requests == 0
