from __future__ import annotations

import random

import pytest

from baton.protos.types import KvEvents, Member, Role, WorkerLoad
from baton.router import view as views
from baton.router.config import RouterConfig
from baton.router.decision import RouteRequest
from baton.router.plan import plan
from baton.router.prefix_index import PrefixIndex
from baton.router.record import Inputs, inputs_from_json, inputs_to_json
from baton.router.view import Busy, ClusterView, Columns, WorkerView

CHAIN = [i.to_bytes(16, "little") for i in range(1, 513)]


def worker(name: str, rng: random.Random, *, idle: bool = False) -> WorkerView:
    role = Role.PREFILL if name.startswith("p") else Role.DECODE
    member = Member(worker_id=name, incarnation="1", role=role, address="", model="m")
    if idle:
        return WorkerView(member, WorkerLoad(), 0.1)
    load = WorkerLoad(
        num_running=rng.randrange(60),
        queued_prefill_tokens=rng.choice((0, rng.randrange(20_000))),
        running_kv_tokens=rng.randrange(100_000),
        total_blocks=30_000,
        free_blocks=rng.randrange(1000, 30_000),
    )
    return WorkerView(member, load, 0.1)


def fleet(rng: random.Random, size: int) -> tuple[ClusterView, PrefixIndex]:
    index = PrefixIndex()
    pools = (
        Columns(worker(f"d{i}", rng) for i in range(size)),
        Columns(worker(f"p{i}", rng) for i in range(size)),
    )
    for name in (*pools[0].ids, *pools[1].ids):
        held = rng.choice((0, 16, 64, 64, 64, rng.randrange(1, 400)))
        index.apply(name, KvEvents(stored=tuple(CHAIN[:held])))
    return ClusterView(pools[0].workers, pools[1].workers, columns=pools), index


def request(**values: object) -> RouteRequest:
    return RouteRequest(
        request_id="r",
        num_prompt_tokens=8192,
        block_hashes=CHAIN,
        max_tokens=256,
        **values,  # type: ignore[arg-type]
    )


def test_a_shortlist_loses_next_to_nothing_of_what_pricing_all_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = RouterConfig()
    lost = []
    for seed in range(40):
        few, index = fleet(random.Random(seed), 48)
        monkeypatch.setattr(views, "_LARGE", 1000)
        whole = ClusterView(few.decode, few.prefill)
        best = plan(whole, index, request(), config, random.Random(1))
        monkeypatch.undo()
        assert few.columns is not None
        assert few.columns[0].orders
        chosen = plan(few, index, request(), config, random.Random(1))
        cheapest = min(option.cost_s for option in best.candidates)
        lost.append(min(option.cost_s for option in chosen.candidates) / cheapest - 1)
    # More lengths of prefixes than are looked at one by one are rare, and cost something.
    assert sum(each < 0.01 for each in lost) >= 35
    assert sum(lost) / len(lost) < 0.05


def test_equally_idle_workers_of_a_large_pool_are_all_chosen() -> None:
    rng = random.Random(0)
    pools = (
        Columns(worker(f"d{i}", rng, idle=True) for i in range(12)),
        Columns(worker(f"p{i}", rng, idle=True) for i in range(12)),
    )
    view = ClusterView(pools[0].workers, pools[1].workers, columns=pools)
    plans = [plan(view, PrefixIndex(), request(), RouterConfig(), rng) for _ in range(400)]
    assert len({each.decode.worker_id for each in plans}) == 12
    assert len({each.prefill[0].worker_id for each in plans}) == 12


def test_orders_are_kept_and_a_large_fleets_decision_is_repeated_to_the_last_bit() -> None:
    rng = random.Random(3)
    view, index = fleet(rng, 24)
    assert view.columns is not None
    for number in range(60):
        for pool in view.columns:
            name = pool.ids[rng.randrange(len(pool))]
            pool.replace(worker(name, rng))
            fresh = Columns(pool.workers)
            assert fresh.orders == pool.orders
            assert fresh[views.Column.WAIT_S].tolist() == pool[views.Column.WAIT_S].tolist()
        asked = request(exclude=frozenset({f"d{number % 24}"}), last_worker="d3")
        hits = index.tokens(asked.chains)
        config, seed = RouterConfig(), rng.getrandbits(64)
        made = plan(view, index, asked, config, random.Random(seed))
        inputs = Inputs(view=view, hits=hits, kept={}, request=asked, config=config, seed=seed)
        assert inputs_from_json(inputs_to_json(inputs)).decide() == made
        assert made.decode.worker_id not in asked.exclude
    assert (
        view.columns[0].orders[Busy.DECODING][0][0] <= view.columns[0].orders[Busy.DECODING][1][0]
    )
