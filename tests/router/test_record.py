from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from baton.cluster.commands.replay import command
from baton.protos.errors import ConfigError
from baton.protos.types import KvEvents, Member, Role, TierLoad, WorkerLoad
from baton.router.config import POLICY_NAMES, RouterConfig
from baton.router.decision import RouteRequest
from baton.router.plan import plan
from baton.router.prefix_index import PrefixIndex
from baton.router.record import Inputs, inputs_from_json, inputs_to_json, where
from baton.router.times import H100_8B, Transfers, TransferTimes
from baton.router.view import ClusterView, WorkerView

CHAIN = [i.to_bytes(16, "little") for i in range(1, 65)]


def random_inputs(rng: random.Random, policy: str) -> tuple[Inputs, PrefixIndex]:
    index = PrefixIndex()

    def worker(worker_id: str, role: Role) -> WorkerView:
        chain = tuple(CHAIN[: rng.randrange(64)])
        index.apply(worker_id, KvEvents(stored=chain, kept=tuple(CHAIN[: rng.randrange(64)])))
        load = WorkerLoad(
            num_running=rng.randrange(40),
            queued_prefill_tokens=rng.choice([0, rng.randrange(20_000)]),
            running_kv_tokens=rng.randrange(100_000),
            total_blocks=9000,
            free_blocks=rng.randrange(9000),
            itl_s=rng.random() * 0.05,
            tiers=(TierLoad("cpu", 1, 2, 3, 4, 5, 6, 7, rng.random() * 1e-4),),
        )
        member = Member(
            worker_id=worker_id,
            incarnation="1",
            role=role,
            address=f"h{rng.randrange(3)}:1",
            model="m",
        )
        return WorkerView(member, load, rng.random() * 6, rng.randrange(500), rng.randrange(3))

    slow = TransferTimes(fixed_s=0.01 * rng.random(), per_byte_s=1e-9)
    view = ClusterView(
        tuple(worker(f"d{i}", Role.DECODE) for i in range(5)),
        tuple(worker(f"p{i}", Role.PREFILL) for i in range(5)),
        Transfers((H100_8B.transfer,) * 3, {("p1", "d1"): slow}),
    )
    request = RouteRequest(
        request_id=f"r{rng.random()}",
        num_prompt_tokens=1030,
        block_hashes=CHAIN,
        max_tokens=rng.randrange(1, 500),
        exclude=frozenset({"d3"}),
        sequence=rng.randrange(100),
    )
    seed = rng.getrandbits(64)
    hits = index.tokens(request.chains)
    config = RouterConfig(policy=policy)
    kept = index.kept(request.chains)
    return Inputs(view=view, hits=hits, kept=kept, request=request, config=config, seed=seed), index


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_a_decision_read_from_its_record_is_the_same_to_the_last_bit(policy: str) -> None:
    rng = random.Random(policy)
    for _ in range(20):
        inputs, index = random_inputs(rng, policy)
        made = plan(inputs.view, index, inputs.request, inputs.config, random.Random(inputs.seed))
        again = inputs_from_json(json.loads(json.dumps(inputs_to_json(inputs)))).decide()
        assert again == made


def test_what_is_no_record_is_refused() -> None:
    inputs, _ = random_inputs(random.Random(1), "cost")
    good = inputs_to_json(inputs)
    for broken in ({}, {**good, "format": 99}, {**good, "decode": [{}]}, {**good, "config": 3}):
        with pytest.raises(ConfigError):
            inputs_from_json(broken)


def test_replay_of_a_log(tmp_path: Path) -> None:
    rng = random.Random(7)
    log = tmp_path / "decisions.jsonl"
    lines = []
    for _ in range(10):
        inputs, _ = random_inputs(rng, "cost")
        chosen = where(inputs.decide())
        lines.append({"kind": "plan", **inputs_to_json(inputs), "chosen": chosen})
        lines.append({"kind": "outcome", "request_id": inputs.request.request_id})
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    same = CliRunner().invoke(command, [str(log), "--json"], catch_exceptions=False)
    assert json.loads(same.output)["num_same"] == 10
    other = CliRunner().invoke(command, [str(log), "--policy", "always_local", "--json"])
    document = json.loads(other.output)
    assert document["local_share"] == 1.0
    assert document["num_decisions"] == 10
    text = CliRunner().invoke(command, [str(log), "--policy", "round_robin", "--show", "1"])
    assert text.output.count(" -> ") == 1
    lines[0]["chosen"] = {**lines[0]["chosen"], "decode": "elsewhere"}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError, match="1 of 10 decisions"):
        CliRunner().invoke(command, [str(log)], catch_exceptions=False)
    log.write_text("not json\n")
    with pytest.raises(ConfigError, match="not a decision log"):
        CliRunner().invoke(command, [str(log)], catch_exceptions=False)
