"""The waiting room: limits, deadlines, honest Retry-After; and that nobody can starve anybody."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protos.errors import ConfigError, OverloadedError
from baton.router.admission import AdmissionQueue, Refusal, Ticket
from baton.router.admission_config import AdmissionConfig, TenantLimits

# Outputs of no price: what is charged at the start is what is served.
FLAT = AdmissionConfig(output_token_price=1e-9, max_wait_s=1e9, max_waiting=10_000)


def ticket(tenant: str, tokens: int = 100, **more: object) -> Ticket:
    return Ticket(tenant=tenant, num_prompt_tokens=tokens, max_tokens=16, **more)  # type: ignore[arg-type]


def refusal(queue: AdmissionQueue, new: Ticket, now_s: float) -> OverloadedError:
    with pytest.raises(OverloadedError) as caught:
        queue.offer(new, now_s)
    return caught.value


def turned_away(queue: AdmissionQueue, new: Ticket, now_s: float) -> OverloadedError | None:
    try:
        queue.offer(new, now_s)
    except OverloadedError as error:
        return error
    return None


def start_next(queue: AdmissionQueue, now_s: float) -> Ticket:
    head = queue.head()
    assert head is not None
    queue.start(head, now_s)
    return head


def test_one_tenant_is_served_by_priority_and_then_in_order() -> None:
    queue = AdmissionQueue(FLAT)
    first, second, urgent = ticket("a"), ticket("a"), ticket("a", priority=-1)
    for item in (first, second, urgent):
        queue.offer(item, 0.0)
    assert [start_next(queue, 1.0) for _ in range(3)] == [urgent, first, second]
    assert queue.head() is None


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=2, max_size=5),
    sizes=st.lists(st.integers(1, 5_000), min_size=40, max_size=80),
    first_to_flood=st.integers(0, 200),
)
def test_tenants_that_wait_get_tokens_by_their_weights(
    weights: list[float], sizes: list[int], first_to_flood: int
) -> None:
    """VTC's bound: two backlogged tenants' services over weights differ by a request of each."""
    queue = AdmissionQueue(
        FLAT, [TenantLimits(name=str(i), weight=w) for i, w in enumerate(weights)]
    )
    # One tenant has been alone here for long; that must not count for or against it.
    for size in sizes[:first_to_flood]:
        queue.offer(ticket("0", size), 0.0)
        start_next(queue, 0.0)
    largest = max(sizes)
    for i in range(len(weights)):
        for size in sizes:
            queue.offer(ticket(str(i), size), 1.0)
    served = [0.0] * len(weights)
    waiting = [len(sizes)] * len(weights)
    while all(waiting):
        head = start_next(queue, 2.0)
        served[int(head.tenant)] += head.num_prompt_tokens
        waiting[int(head.tenant)] -= 1
        shares = [s / w for s, w in zip(served, weights, strict=True)]
        bound = 2 * largest / min(weights) + 1
        assert max(shares) - min(shares) <= bound


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_no_flood_keeps_another_tenant_out_or_waiting_for_ever(data: st.DataObject) -> None:
    """However others flood, a newcomer finds a place and starts after a bounded service."""
    num_floods = data.draw(st.integers(1, 4))
    config = AdmissionConfig(
        max_waiting=60, output_token_price=1e-9, max_wait_s=1e9, max_waiting_tokens=10**9
    )
    names = [f"flood{i}" for i in range(num_floods)]
    queue = AdmissionQueue(config, [TenantLimits(name=n) for n in (*names, "quiet")])
    for _ in range(150):
        name = data.draw(st.sampled_from(names))
        size = data.draw(st.integers(1, 1000))
        error = turned_away(queue, ticket(name, size, priority=-100), 0.0)
        assert error is None or error.code in (Refusal.QUEUE_FULL, Refusal.TENANT_QUEUE_FULL)
        if data.draw(st.integers(0, 9)) == 0 and queue.head() is not None:
            start_next(queue, 0.0)
        queue.check_integrity()
    quiet = ticket("quiet", 500, priority=100)
    queue.offer(quiet, 1.0)
    served = 0.0
    while True:
        head = start_next(queue, 2.0)
        if head is quiet:
            break
        served += head.num_prompt_tokens
        # The flood goes on meanwhile.
        name = data.draw(st.sampled_from(names))
        error = turned_away(queue, ticket(name, 1000, priority=-100), 2.0)
        assert error is None or error.retry_after_s >= 1.0
    assert served <= 2 * 1000 * num_floods


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_counts_stay_right_whatever_ends_when(data: st.DataObject) -> None:
    queue = AdmissionQueue(
        AdmissionConfig(max_waiting=20, max_wait_s=5.0),
        [TenantLimits(name="capped", max_running=2), TenantLimits(name="free")],
    )
    alive: list[Ticket] = []
    now_s = 0.0
    for _ in range(60):
        now_s += data.draw(st.floats(0, 1))
        action = data.draw(st.sampled_from(["offer", "start", "end", "expire"]))
        if action == "offer":
            new = ticket(
                data.draw(st.sampled_from(["capped", "free"])), data.draw(st.integers(0, 50))
            )
            error = turned_away(queue, new, now_s)
            if error is None:
                alive.append(new)
            else:
                assert error.code in set(Refusal)
        elif action == "start" and (head := queue.head()) is not None:
            queue.start(head, now_s)
        elif action == "end" and alive:
            gone = alive.pop(data.draw(st.integers(0, len(alive) - 1)))
            queue.end(gone, now_s, num_output_tokens=data.draw(st.integers(0, 30)))
            queue.end(gone, now_s)
        elif action == "expire":
            for late, answer in queue.expired(now_s):
                assert late.latest_start_s <= now_s
                assert answer.retry_after_s >= 1.0
                alive.remove(late)
        queue.check_integrity()
        capped = next(t for t in queue.statistics() if t.name == "capped")
        assert capped.num_running <= 2
    for left in alive:
        queue.end(left, now_s)
    queue.check_integrity()
    assert queue.num_waiting == queue.waiting_tokens == 0
    assert all(t.num_running == t.num_waiting == 0 for t in queue.statistics())


def test_a_capped_tenant_lets_others_pass_and_goes_on_when_one_of_its_own_ends() -> None:
    queue = AdmissionQueue(FLAT, [TenantLimits(name="a", max_running=1), TenantLimits(name="b")])
    a1, a2, b1 = ticket("a"), ticket("a"), ticket("b", 10_000)
    for item in (a1, a2, b1):
        queue.offer(item, 0.0)
    assert start_next(queue, 0.0) is a1
    assert start_next(queue, 0.0) is b1
    assert queue.head() is None
    queue.end(a1, 1.0, num_output_tokens=3)
    assert queue.head() is a2


def test_a_token_rate_is_refused_until_its_debt_is_paid() -> None:
    queue = AdmissionQueue(FLAT, [TenantLimits(name="a", tokens_per_minute=600)])
    first = ticket("a", 600)
    queue.offer(first, 0.0)
    queue.start(first, 0.0)
    queue.end(first, 0.0, num_output_tokens=300)
    error = refusal(queue, ticket("a", 1), 0.0)
    assert error.code == Refusal.TOKEN_RATE
    assert error.retry_after_s == pytest.approx(30.0, rel=0.01)
    assert "600 tokens a minute" in error.message
    refusal(queue, ticket("a", 1), 29.0)
    # The Retry-After was honest.
    queue.offer(ticket("a", 1), error.retry_after_s + 0.001)


def test_a_request_that_never_ran_costs_no_rate() -> None:
    queue = AdmissionQueue(FLAT, [TenantLimits(name="a", tokens_per_minute=600)])
    gone = ticket("a", 600)
    queue.offer(gone, 0.0)
    queue.end(gone, 0.0)
    queue.offer(ticket("a", 600), 0.0)


def busy_queue(*, served_per_s: float, config: AdmissionConfig = FLAT) -> AdmissionQueue:
    """A queue that has been seen to serve so many tokens a second for ten seconds."""
    queue = AdmissionQueue(config)
    for _ in range(200):
        queue.offer(ticket("a", round(served_per_s / 10)), 0.0)
    for step in range(1, 101):
        start_next(queue, step / 10)
    return queue


def test_a_deadline_that_cannot_be_met_is_refused_with_the_time_after_which_it_could() -> None:
    queue = busy_queue(served_per_s=1000.0)
    assert queue.wait_estimate_s("a", 10.0) == pytest.approx(10.0, rel=0.1)
    error = refusal(queue, ticket("a", 100, due_s=10.0 + 4.0, service_s=1.0), 10.0)
    assert error.code == Refusal.TOO_LATE
    # Ten seconds' worth waits, three may be waited.
    assert error.retry_after_s == pytest.approx(7.0, rel=0.15)
    queue.offer(ticket("a", 100, due_s=10.0 + 14.0, service_s=1.0), 10.0)
    # Served on at the same rate, the same request is taken when it was told to come back.
    now_s = 10.0
    while now_s < 10.0 + error.retry_after_s:
        now_s += 0.1
        start_next(queue, now_s)
    queue.offer(ticket("a", 100, due_s=now_s + 4.3, service_s=1.0), now_s)


def test_what_waits_too_long_is_handed_back_once() -> None:
    queue = AdmissionQueue(AdmissionConfig(max_wait_s=5.0), [TenantLimits(name="a", max_ttft_s=2)])
    soon, later = ticket("a", service_s=0.5), ticket("b")
    queue.offer(soon, 0.0)
    queue.offer(later, 0.0)
    assert queue.next_expiry_s() == pytest.approx(1.5)
    assert queue.expired(1.0) == []
    assert [late for late, _ in queue.expired(1.6)] == [soon]
    assert [late for late, _ in queue.expired(6.0)] == [later]
    assert queue.expired(100.0) == []
    assert queue.next_expiry_s() == math.inf
    assert queue.num_waiting == 0


def test_a_full_room_refuses_and_names_its_limit() -> None:
    queue = AdmissionQueue(AdmissionConfig(max_waiting=2))
    queue.offer(ticket("a"), 0.0)
    queue.offer(ticket("a"), 0.0)
    error = refusal(queue, ticket("a"), 0.0)
    assert (error.code, error.http_status) == (Refusal.QUEUE_FULL, 429)
    small = AdmissionQueue(AdmissionConfig(max_waiting_tokens=1000))
    small.offer(ticket("a", 5000), 0.0)  # alone it may be larger: else it could never come
    assert refusal(small, ticket("a", 1), 0.0).code == Refusal.QUEUE_FULL
    own = AdmissionQueue(FLAT, [TenantLimits(name="a", max_waiting=1)])
    own.offer(ticket("a"), 0.0)
    assert refusal(own, ticket("a"), 0.0).code == Refusal.TENANT_QUEUE_FULL
    own.offer(ticket("b"), 0.0)
    (tenant_a, _) = own.statistics()
    assert tenant_a.refused == {Refusal.TENANT_QUEUE_FULL: 1}


def test_overload_keeps_serving_at_the_full_rate() -> None:
    """Three times what can be served arrives; what is accepted meets its deadline."""
    config = AdmissionConfig(
        max_wait_s=1e9, output_token_price=1e-9, max_waiting_tokens=10**9, max_waiting=10**6
    )
    queue = AdmissionQueue(config)
    on_time = late = 0
    budget, now_s = 0.0, 0.0
    while now_s < 40.0:
        now_s += 0.01
        for _ in range(3):
            turned_away(queue, ticket("a", 10, due_s=now_s + 2.0, service_s=0.1), now_s)
        late += len(queue.expired(now_s))
        budget += 10.0
        while budget >= 10.0 and (head := queue.head()) is not None:
            budget -= 10.0
            queue.start(head, now_s)
            on_time += now_s + 0.1 <= head.due_s
        budget = min(budget, 10.0)
    # 4,000 could be served in all.
    assert on_time >= 0.95 * 4_000
    assert late <= 0.05 * 4_000


@pytest.mark.parametrize(
    ("field", "value"), [("weight", 0.0), ("max_running", -1), ("max_ttft_s", math.nan)]
)
def test_limits_that_make_no_sense_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        TenantLimits(name="a", **{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field
    assert field in caught.value.message
