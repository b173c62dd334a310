from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from tests.simulator.helpers import config, times, trace

from baton.router.times import WorkerTimes, num_pairs
from baton.simulator.request import Trace
from baton.simulator.runs import Run
from baton.simulator.simulation import Simulation


@dataclass
class Naive:
    """A request of the reference below, which takes one step at a time."""

    arrival_s: float
    num_prompt: int
    num_output: int
    num_computed: int = 0
    num_sampled: int = 0
    first_s: float = -1.0
    finish_s: float = -1.0


def step_by_step(requests: Trace, worker: WorkerTimes) -> list[Naive]:
    """One worker without a memory limit, written as plainly as can be."""
    everyone = [
        Naive(r.arrival_s, r.num_prompt_tokens, r.num_output_tokens) for r in requests.requests
    ]
    now = 0.0
    while any(r.finish_s < 0 for r in everyone):
        here = [r for r in everyone if r.arrival_s <= now and r.finish_s < 0]
        if not here:
            now = min(r.arrival_s for r in everyone if r.finish_s < 0)
            continue
        decoding = [r for r in here if r.num_sampled]
        budget = worker.prefill.chunk_tokens - len(decoding)
        chunks = []
        for request in (r for r in here if not r.num_sampled):
            count = min(budget, request.num_prompt - request.num_computed)
            if count:
                chunks.append((request, count))
                budget -= count
        kv_tokens = sum(r.num_prompt + r.num_sampled - 1 for r in decoding)
        if chunks:
            now += (
                worker.prefill.fixed_s
                + sum(n for _, n in chunks) * worker.prefill.per_token_s
                + sum(num_pairs(n, r.num_computed) for r, n in chunks) * worker.prefill.per_pair_s
                + len(decoding) * worker.prefill.per_row_s
                + kv_tokens * worker.decode.per_kv_token_s
            )
        else:
            now += worker.decode.predict(len(decoding), kv_tokens)
        for request, count in chunks:
            request.num_computed += count
            if request.num_computed == request.num_prompt:
                request.first_s = now
        for request in decoding + [r for r, _ in chunks if r.num_computed == r.num_prompt]:
            request.num_sampled += 1
            if request.num_sampled == request.num_output:
                request.finish_s = now
    return everyone


@pytest.mark.parametrize("seed", range(4))
def test_many_steps_at_once_end_when_single_steps_would(seed: int) -> None:
    rng = random.Random(seed)
    requests = trace(
        *sorted((rng.uniform(0, 3), rng.randint(1, 3000), rng.randint(1, 200)) for _ in range(40))
    )
    simulation = Simulation(requests, config("always_local", prefill=0, times=times()))
    simulation.run()
    expected = step_by_step(requests, times().decode_pool)
    for job, reference in zip(simulation.jobs, expected, strict=True):
        assert job.first_s == pytest.approx(reference.first_s, abs=1e-6)
        assert job.finish_s == pytest.approx(reference.finish_s, abs=1e-6)


def test_gaps_are_those_of_the_steps() -> None:
    requests = trace((0.0, 100, 51))
    simulation = Simulation(requests, config("always_local", prefill=0, times=times()))
    outcome = simulation.run()
    assert simulation.gaps.total == 50
    assert outcome.itl_p50 == pytest.approx(times().decode_pool.decode.predict(1, 125), rel=0.01)


def test_a_decode_without_memory_gives_way_and_is_computed_again() -> None:
    # Both fit with their prompts, but not with all of their output.
    requests = trace((0.0, 1000, 600), (0.1, 1000, 600))
    simulation = Simulation(
        requests,
        config("always_local", prefill=0, times=times(), kv_capacity_tokens=2600),
    )
    outcome = simulation.run()
    assert outcome.num_failed == 0
    first, second = simulation.jobs
    assert first.finish_s < second.finish_s
    # 599 gaps each; the one over which the second was computed again is long.
    assert simulation.gaps.total == pytest.approx(2 * 599)


def test_a_request_larger_than_any_worker_is_refused() -> None:
    requests = trace((0.0, 1000, 600), (0.1, 100, 10))
    outcome = Simulation(requests, config(kv_capacity_tokens=1500)).run()
    assert (outcome.num_requests, outcome.num_failed) == (2, 1)


def test_a_long_run_in_closed_form() -> None:
    run = Run(0.0, 100, 0.010, 0.001)
    durations = [0.010 + 0.001 * i for i in range(100)]
    for count in (0, 1, 7, 100):
        assert run.elapsed_s(count) == pytest.approx(sum(durations[:count]))
        assert run.steps_by(sum(durations[:count]) + 1e-6) == count
