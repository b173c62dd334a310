from __future__ import annotations

import pytest
from tests.simulator.helpers import config, times, trace

from baton.router.admission_config import AdmissionConfig, TenantLimits
from baton.simulator.admission import SimAdmission
from baton.simulator.request import Trace, TraceRequest
from baton.simulator.simulation import Simulation

# Prompts of about 0.3 s that all come at once.
CROWD = trace(*((0.0, 8192, 2) for _ in range(20)))


def test_requests_wait_for_a_worker_that_can_begin_them() -> None:
    simulation = Simulation(CROWD, config(times=times(), admission=SimAdmission()))
    outcome = simulation.run()
    assert outcome.num_failed == 0
    straight = Simulation(CROWD, config(times=times())).run()
    assert outcome.ttft_p99 == pytest.approx(straight.ttft_p99, rel=0.3)


def test_what_cannot_meet_its_deadline_is_refused_and_the_rest_meets_it() -> None:
    room = SimAdmission(deadline_s=1.5)
    simulation = Simulation(CROWD, config(times=times(), admission=room))
    outcome = simulation.run()
    assert 0 < outcome.num_failed < 20
    served = [job for job in simulation.jobs if not job.error]
    # Predictions are not perfect, but none is far off.
    assert max(job.first_s for job in served) < 2 * 1.5


def test_a_tenant_that_floods_does_not_starve_another() -> None:
    requests = tuple(
        TraceRequest(index, 0.0, 8192, 2, (), "loud" if index < 30 else "quiet")
        for index in range(34)
    )
    room = SimAdmission(
        config=AdmissionConfig(hold_s=0.1),
        tenants=(TenantLimits(name="loud"), TenantLimits(name="quiet")),
    )
    simulation = Simulation(
        Trace("two", 512, requests), config("always_local", times=times(), admission=room)
    )
    simulation.run()
    quiet = [job.first_s for job in simulation.jobs if job.request.tenant == "quiet"]
    loud = [job.first_s for job in simulation.jobs if job.request.tenant == "loud"]
    assert max(quiet) < sorted(loud)[15]
