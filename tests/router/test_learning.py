from __future__ import annotations

import random

import pytest

from baton.protos.types import Role, StepSample, TransferSample, WorkerLoad
from baton.router.fit import RobustFit
from baton.router.learning import ModelBook
from baton.router.times import (
    H100_8B,
    DecodeTimes,
    ModelTimes,
    Near,
    PrefillTimes,
    TransferTimes,
    WorkerTimes,
    num_pairs,
)

# Two slow CPU cores: 12 ms a step, 0.3 ms a token.
CPU = WorkerTimes(
    prefill=PrefillTimes(fixed_s=0.012, per_token_s=3e-4, per_pair_s=2e-8, per_row_s=1e-3),
    decode=DecodeTimes(fixed_s=0.015, per_row_s=1e-3, per_kv_token_s=1e-6),
)


def prompt_step(rng: random.Random, lengths: list[int], noise: float = 0.08) -> StepSample:
    new, rows = rng.choice(lengths), rng.randrange(4)
    seconds = CPU.prefill.predict(new, 0, rows) * rng.gauss(1.0, noise)
    return StepSample(new, int(num_pairs(new, 0)), rows, 10 * rows, max(seconds, 1e-4))


def decode_step(rng: random.Random) -> StepSample:
    rows = rng.randrange(1, 20)
    kv_tokens = rows * rng.randrange(10, 500)
    return StepSample(0, 0, rows, kv_tokens, CPU.decode.predict(rows, kv_tokens))


def report(*steps: StepSample, **values: int) -> WorkerLoad:
    return WorkerLoad(steps=steps, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
def test_tiny_prompts_and_slow_first_steps_do_not_make_a_worker_look_slow(seed: int) -> None:
    rng = random.Random(seed)
    book = ModelBook(H100_8B)
    for step in range(200):
        sample = prompt_step(rng, [5, 8, 20, 30])
        if step < 3 or rng.random() < 0.05:
            sample = sample._replace(seconds=sample.seconds * 20)
        book.observe("p0", Role.PREFILL, report(sample, max_step_tokens=512))
    learned = book.times("p0", Role.PREFILL).prefill
    assert learned.chunk_tokens == 512
    assert learned.predict(20) == pytest.approx(CPU.prefill.predict(20), rel=0.15)
    # Seventeen times longer than anything it has seen.
    assert learned.predict(500) == pytest.approx(CPU.prefill.predict(500), rel=0.35)
    assert book.errors()[0].prefill_error < 0.3


def test_one_model_from_very_few_steps_is_of_the_right_size() -> None:
    rng = random.Random(5)
    book = ModelBook(H100_8B)
    for _ in range(12):
        book.observe("p0", Role.PREFILL, report(prompt_step(rng, [30, 200, 400])))
    predicted = book.times("p0", Role.PREFILL).prefill.predict(400)
    assert predicted == pytest.approx(CPU.prefill.predict(400), rel=0.5)


def test_a_new_worker_begins_as_its_pool_and_an_unmeasured_pool_as_the_other() -> None:
    rng = random.Random(1)
    book = ModelBook(H100_8B)
    assert book.times("p0", Role.PREFILL) == H100_8B.prefill_pool
    for _ in range(400):
        book.observe("p0", Role.PREFILL, report(prompt_step(rng, [30, 200, 400])))
        book.observe("d0", Role.DECODE, report(decode_step(rng)))
    for worker_id, role in (("p1", Role.PREFILL), ("d1", Role.DECODE)):
        times = book.times(worker_id, role)
        assert times.prefill.predict(300) == pytest.approx(CPU.prefill.predict(300), rel=0.15)
        assert times.decode.predict(9, 900) == pytest.approx(CPU.decode.predict(9, 900), rel=0.15)
    book.forget("p0")
    assert [error.worker_id for error in book.errors()] == ["d0"]


def test_a_worker_that_slows_down_is_followed() -> None:
    rng = random.Random(2)
    fit = RobustFit([0.001, 1e-5])
    for factor in (1.0, 5.0, 0.5):
        for _ in range(300):
            tokens = rng.choice([10, 100, 1000])
            fit.update((1.0, tokens), factor * (0.002 + 3e-5 * tokens) * rng.gauss(1.0, 0.05))
        fixed_s, per_token_s = fit.coefficients
        assert fixed_s + 500 * per_token_s == pytest.approx(factor * 0.017, rel=0.1)


def test_coefficients_stay_within_bounds_whatever_comes() -> None:
    rng = random.Random(3)
    fit = RobustFit([0.001, 1e-5])
    for _ in range(500):
        seconds = rng.choice([1e-9, 1e9, float("nan"), float("inf"), -1.0, 0.0, 0.01])
        fit.update((1.0, rng.choice([0, 1, 10**6])), seconds)
        assert all(0.0 <= value <= 1e5 * 0.001 for value in fit.coefficients)
    assert 0.0 <= fit.error <= 1.0


def test_transfers_are_learned_by_pair_and_by_nearness() -> None:
    book = ModelBook(H100_8B)
    for num_bytes in [1 << 20, 4 << 20, 16 << 20] * 100:
        book.moved("p0", TransferSample("d0", num_bytes, 0.002 + num_bytes / 1e9), Near.HOST)
        book.moved("p1", TransferSample("d0", num_bytes, 0.002 + num_bytes / 1e8), Near.FAR)
    transfers = book.transfers
    assert transfers.between("p0", "d0").predict(8 << 20) == pytest.approx(0.0104, rel=0.1)
    assert transfers.between("p9", "d0", Near.HOST).predict(8 << 20) == pytest.approx(0.01, rel=0.2)
    assert transfers.between("p9", "d0", Near.FAR).predict(8 << 20) == pytest.approx(0.086, rel=0.2)
    # Nobody has measured workers of one rack.
    assert transfers.between("p9", "d9", Near.RACK) == H100_8B.transfer
    book.forget("p0")
    assert ("p0", "d0") not in book.transfers.pairs


def test_the_handshake_is_what_remote_requests_took_longer_than_local_ones() -> None:
    book = ModelBook(H100_8B)
    for _ in range(300):
        book.answered("remote", 0.012)
        book.answered("local", 0.004)
    book.answered("remote", 60.0)
    assert book.handshake_s == pytest.approx(0.008, rel=0.3)


def test_what_was_learned_survives_a_restart() -> None:
    rng = random.Random(4)
    book = ModelBook(H100_8B)
    for _ in range(300):
        book.observe("d0", Role.DECODE, report(decode_step(rng), prompt_step(rng, [9, 300])))
    book.observe("d0", Role.DECODE, report(kv_bytes_per_token=768))
    saved = ModelTimes.from_json(book.export("tiny").to_json())
    assert saved.source == "tiny"
    assert saved.kv_bytes_per_token == 768
    times = ModelBook(saved).times("new", Role.PREFILL)
    assert times.prefill.predict(300) == pytest.approx(CPU.prefill.predict(300), rel=0.15)
    assert isinstance(saved.transfer, TransferTimes)
