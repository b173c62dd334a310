"""Workers that come, go and die while requests run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.simulator.helpers import config, times, trace

from baton.protos.types import Role
from baton.router.scaling_config import ScalingConfig
from baton.simulator.config import SimScaling
from baton.simulator.mixes import MIXES
from baton.simulator.simulation import Simulation
from baton.simulator.synthetic import Burst, synthesize

SCALING = ScalingConfig(
    policy="slo", ttft_slo_s=2.0, itl_slo_s=0.05, down_cooldown_s=20, start_s=10
)


def test_failures_lose_no_request() -> None:
    requests = synthesize("mixed", replace(MIXES["mixed"], duration_s=60.0), seed=5)
    fleet = config(prefill=2, decode=2, times=times(), mtbf_s=20.0, startup_s=5.0, seed=2)
    simulation = Simulation(requests, fleet)
    outcome = simulation.run()
    assert simulation.num_failures > 3
    assert outcome.num_failed == 0
    assert simulation.gaps.total == pytest.approx(
        sum(job.request.num_output_tokens - 1 for job in simulation.jobs)
    )
    assert any(job.attempt > 1 for job in simulation.jobs)


def test_pools_follow_a_burst_and_cost_less() -> None:
    mix = replace(
        MIXES["burst"], duration_s=240.0, bursts=(Burst(start_s=60, end_s=120, factor=6),)
    )
    requests = synthesize("burst", mix, seed=1)
    scaling = SimScaling(config=SCALING)
    fleet = config(prefill=1, decode=1, times=times(), startup_s=10.0, scaling=scaling)
    simulation = Simulation(requests, fleet)
    outcome = simulation.run()
    assert outcome.num_failed == 0
    sizes = [size for _, role, size, _ in simulation.resizes if role is Role.PREFILL]
    assert max(sizes) >= 2
    assert sizes[-1] < max(sizes)
    assert outcome.gpu_hours < (max(sizes) + 1) * 240 / 3600
    assert sum(1 for _ in simulation.fleet.pool(Role.PREFILL)) <= max(sizes)


def test_a_pool_of_none_wakes_for_a_request() -> None:
    scaling = SimScaling(config=SCALING, min_prefill=0, min_decode=0)
    requests = trace((0.0, 600, 5), (400.0, 600, 5))
    fleet = config(prefill=1, decode=1, times=times(), startup_s=10.0, scaling=scaling)
    simulation = Simulation(requests, fleet)
    outcome = simulation.run()
    assert outcome.num_failed == 0
    # It waited for a worker to start.
    assert simulation.jobs[1].first_s > 410.0
    assert outcome.gpu_hours < 0.5 * 2 * 400 / 3600
