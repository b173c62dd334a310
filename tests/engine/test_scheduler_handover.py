"""Holds, reservations, quarantines and aborts: what a handover asks of the scheduler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.engine.fakes import Builder, answer, fill, generate

from baton.protos.errors import OverloadedError, StaleEpochError
from baton.protos.types import FinishReason


@pytest.fixture
def build() -> Iterator[Builder]:
    """Builds engines, and proves at the end that each of them kept its books."""
    builder = Builder()
    yield builder
    builder.check()


def test_a_hold_computes_the_prompt_and_keeps_its_blocks(build):
    fake, collector = build.make(max_step_tokens=5)
    request = generate("a", [1] * 11, max_tokens=5)
    fake.engine.add(request, hold=True)
    collector.run()
    assert collector.progress["a"] == [5, 10, 11]
    assert collector.token_ids["a"] == answer(request, 64).token_ids[:1]
    assert collector.finish_reasons == {}, "it is the request that is not over"
    assert fake.engine.load().free_blocks == 13
    assert fake.engine.statistics().requests.num_held == 1
    fake.engine.release("a")
    assert fake.engine.load().free_blocks == 16
    fake.engine.release("a")


def test_a_hold_says_so_if_its_token_ends_the_request(build):
    fake, collector = build.make()
    fake.engine.add(generate("a", [1] * 3, max_tokens=1), hold=True)
    collector.run()
    assert collector.finish_reasons["a"] is FinishReason.LENGTH
    fake.engine.release("a")


def test_a_held_prompt_is_never_preempted(build):
    fake, collector = build.make(num_blocks=8, max_running=2, max_step_tokens=3)
    decode = generate("a", [1] * 7, max_tokens=24)
    fake.engine.add(decode)
    for _ in range(3):
        collector.step()
    fake.engine.add(generate("b", [2] * 18), hold=True)
    collector.run()
    assert collector.num_preempted == 1, "the decode gave way, though it came first"
    assert collector.progress["b"][-1] == 18
    assert not fake.engine.has_work(), "the decode waits for blocks without spinning"
    fake.engine.release("b")
    assert fake.engine.has_work()
    collector.run()
    collector.check_answer(decode, max_model_len=32)


def test_a_reservation_is_filled_and_decodes_on(build):
    fake, collector = build.make()
    request = generate("a", [1] * 9, max_tokens=6)
    reservation = fake.engine.reserve(request)
    assert reservation is not None
    assert len(reservation.block_ids) == 3
    assert not fake.engine.has_work()
    fake.engine.receive("a", reservation.epoch, fill(fake, reservation, request))
    collector.run()
    assert collector.token_ids["a"] == answer(request, 64).token_ids[1:]
    again = fake.engine.reserve(generate("b", [1] * 9))
    assert again is not None
    assert again.num_cached_tokens == 8
    assert again.block_ids[:2] == reservation.block_ids[:2]
    assert again.epoch > reservation.epoch
    assert fake.engine.abort("b")


def test_a_handover_whose_first_token_ends_it_runs_nothing(build):
    fake, _ = build.make()
    request = generate("a", [1] * 9, max_tokens=1)
    reservation = fake.engine.reserve(request)
    assert reservation is not None
    fake.engine.receive("a", reservation.epoch, fill(fake, reservation, request))
    assert not fake.engine.has_work()
    assert fake.engine.load().free_blocks == 16
    assert not fake.engine.abort("a")


def test_a_handover_that_fills_the_context_ends_with_an_empty_output(build):
    fake, collector = build.make(num_blocks=3)
    request = generate("a", [1] * 11, max_tokens=9)
    reservation = fake.engine.reserve(request)
    assert reservation is not None
    first = fill(fake, reservation, request)
    first.finish_reason = None
    fake.engine.receive("a", reservation.epoch, first)
    collector.run()
    assert collector.token_ids["a"] == []
    assert collector.finish_reasons["a"] is FinishReason.LENGTH


def test_stale_receives_are_refused(build):
    fake, _ = build.make()
    request = generate("a", [1] * 5)
    old = fake.engine.reserve(request)
    assert old is not None
    fake.engine.abort("a")
    new = fake.engine.reserve(request)
    assert new is not None
    first = fill(fake, new, request)
    with pytest.raises(StaleEpochError, match=f"reservation {old.epoch} is over"):
        fake.engine.receive("a", old.epoch, first)
    fake.engine.receive("a", new.epoch, first)
    with pytest.raises(StaleEpochError):
        fake.engine.receive("a", new.epoch, first)
    with pytest.raises(StaleEpochError):
        fake.engine.receive("unknown", 1, first)
    fake.engine.abort("a")


def test_received_requests_wait_for_a_slot_with_their_blocks(build):
    fake, collector = build.make(max_running=1)
    requests = [generate(name, [i + 1] * 6, max_tokens=4) for i, name in enumerate("abc")]
    for request in requests:
        reservation = fake.engine.reserve(request)
        assert reservation is not None
        fake.engine.receive(request.request_id, reservation.epoch, fill(fake, reservation, request))
    collector.step()
    assert fake.engine.load().num_running == 1
    assert fake.engine.load().num_waiting == 2
    collector.run()
    for request in requests:
        assert collector.token_ids[request.request_id] == answer(request, 64).token_ids[1:]


def test_a_received_request_runs_though_the_queue_is_stuck_for_blocks(build):
    fake, collector = build.make(num_blocks=4)
    request = generate("a", [1] * 9, max_tokens=2)
    reservation = fake.engine.reserve(request)
    assert reservation is not None
    fake.engine.add(generate("stuck", [2] * 9, max_tokens=1))
    collector.step()
    assert not fake.engine.has_work()
    fake.engine.receive("a", reservation.epoch, fill(fake, reservation, request))
    assert fake.engine.has_work()
    collector.run()
    assert set(collector.finish_reasons) == {"a", "stuck"}


def test_a_reservation_without_room_is_none_and_keeps_nothing(build):
    fake, collector = build.make(num_blocks=4)
    fake.engine.add(generate("a", [1] * 5, max_tokens=6))
    collector.step()
    assert fake.engine.reserve(generate("b", [2] * 9)) is None, "the decode may need the last one"
    reservation = fake.engine.reserve(generate("b", [2] * 4))
    assert reservation is not None
    fake.engine.abort("b")
    collector.run()


def test_quarantined_blocks_stay_out_of_use_until_their_own_release(build):
    fake, collector = build.make(num_blocks=8)
    request = generate("a", [1] * 9)
    epochs = []
    for _ in range(2):
        reservation = fake.engine.reserve(request)
        assert reservation is not None
        epochs.append(reservation.epoch)
        assert fake.engine.abort("a", quarantine=True)
    assert fake.engine.load().free_blocks == 2
    with pytest.raises(OverloadedError, match="still being sent"):
        fake.engine.add(request, hold=True)
    fake.engine.add(request)
    collector.step()
    assert not fake.engine.has_work(), "2 blocks are not enough, and nothing else can run"
    fake.engine.release("a", epoch=999)
    assert not fake.engine.has_work() or fake.engine.load().free_blocks == 2
    fake.engine.release("a", epoch=epochs[0])
    assert fake.engine.load().free_blocks == 5
    collector.run()
    fake.engine.release("a")
    assert fake.engine.load().free_blocks == 8
    collector.check_answer(request, max_model_len=32)


def test_abort_ends_any_state_without_an_output(build):
    fake, collector = build.make(max_running=1)
    fake.engine.add(generate("decoding", [1, 2]))
    fake.engine.add(generate("queued", [1, 2]))
    assert fake.engine.reserve(generate("reserved", [3, 4])) is not None
    request = generate("ready", [5, 6])
    reservation = fake.engine.reserve(request)
    assert reservation is not None
    collector.step()
    fake.engine.receive("ready", reservation.epoch, fill(fake, reservation, request))
    for name in ("decoding", "queued", "reserved", "ready"):
        assert fake.engine.abort(name), name
        fake.engine.check_integrity()
        assert not fake.engine.abort(name)
    assert not fake.engine.has_work()
    assert fake.engine.load().free_blocks == 16
    assert fake.runner.rows == {}
