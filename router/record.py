"""A decision and all that it was made from, as JSON: the lines of a decision log."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from baton.protos.errors import ConfigError
from baton.protos.types import Member, Role, TierLoad, WorkerLoad
from baton.router.config import RouterConfig
from baton.router.decision import Chain, Kept, Plan, RouteRequest
from baton.router.plan import plan
from baton.router.promises import Held
from baton.router.times import (
    DecodeTimes,
    PrefillTimes,
    Transfers,
    TransferTimes,
    WorkerTimes,
)
from baton.router.view import ClusterView, Columns, WorkerState, WorkerView

FORMAT = 3


class RecordedPrefixes:
    """What the prefix index said of one prompt: tokens by worker id."""

    def __init__(self, hits: Mapping[str, int], kept: Mapping[str, Kept]) -> None:
        self._hits = dict(hits)
        self._kept = dict(kept)

    def kept(self, chains: Sequence[Chain]) -> Mapping[str, Kept]:
        """As `PrefixIndex.kept`, for the prompt that was recorded."""
        return self._kept if chains else {}

    def held(self, chains: Sequence[Chain], pools: Sequence[Columns]) -> list[Held]:
        """As `PrefixIndex.held`, for the prompt that was recorded."""
        bits = {name: 1 << number for number, name in enumerate(self._hits)}
        for pool in pools:
            pool.set_bits([bits.get(name, 0) for name in pool.ids])
        workers: dict[int, int] = {}
        for name, num_tokens in self._hits.items() if chains else ():
            workers[num_tokens] = workers.get(num_tokens, 0) | bits[name]
        return [Held(workers[length], length) for length in sorted(workers, reverse=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that `plan` was given. `seed` is that of its random numbers; `hits` are
    leading tokens by worker id, `kept` those in slower tiers.
    """

    view: ClusterView
    hits: Mapping[str, int]
    kept: Mapping[str, Kept]
    request: RouteRequest
    config: RouterConfig
    seed: int

    def decide(self, policy: str | None = None) -> Plan:
        """The plan for these inputs, by the policy that was in force or by another.

        Raises UnavailableError as `plan` does, ConfigError for a policy that does not exist.
        """
        config = self.config if policy is None else replace(self.config, policy=policy)
        prefixes = RecordedPrefixes(self.hits, self.kept)
        return plan(self.view, prefixes, self.request, config, random.Random(self.seed))


def inputs_to_json(inputs: Inputs) -> dict[str, Any]:
    """Plain values, all that `inputs_from_json` needs to make the same plan again."""
    view, request = inputs.view, inputs.request
    route = {
        field.name: getattr(request, field.name)
        for field in fields(request)
        if field.name not in ("block_hashes", "other_chains")
    }
    route["exclude"] = sorted(request.exclude)
    return {
        "format": FORMAT,
        "seed": inputs.seed,
        "request": route | {"num_hashes": len(request.block_hashes)},
        "hits": dict(inputs.hits),
        "kept": dict(inputs.kept),
        "config": asdict(inputs.config),
        "decode": [_worker(worker) for worker in view.decode],
        "prefill": [_worker(worker) for worker in view.prefill],
        "by_nearness": [asdict(times) for times in view.transfers.by_nearness],
        "pairs": [[*pair, asdict(times)] for pair, times in view.transfers.pairs.items()],
        "kv_bytes_per_token": view.kv_bytes_per_token,
        "handshake_s": view.handshake_s,
    }


def inputs_from_json(raw: Mapping[str, Any]) -> Inputs:
    """The inverse of `inputs_to_json`. Raises ConfigError for anything else."""
    if raw.get("format") != FORMAT:
        raise ConfigError(f"a decision of format {raw.get('format')!r}; this reads {FORMAT}")
    try:
        return _inputs(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"not a decision as Baton writes them: {error!r}") from None


def where(chosen: Plan) -> dict[str, Any]:
    """Which workers a plan names, and why."""
    return {
        "decode": chosen.decode.worker_id,
        "prefill": [member.worker_id for member in chosen.prefill],
        "pull_from": "" if chosen.pull_from is None else chosen.pull_from.worker_id,
        "reason": chosen.reason,
        "ttft_s": chosen.ttft_s,
    }


def _inputs(raw: Mapping[str, Any]) -> Inputs:
    route = dict(raw["request"])
    # What they were does not matter any more: the hits say what they led to.
    route["block_hashes"] = (b"",) * route.pop("num_hashes")
    route["exclude"] = frozenset(route["exclude"])
    near = [TransferTimes(**times) for times in raw["by_nearness"]]
    pairs = {(prefill, decode): TransferTimes(**times) for prefill, decode, times in raw["pairs"]}
    view = ClusterView(
        decode=tuple(_read_worker(worker) for worker in raw["decode"]),
        prefill=tuple(_read_worker(worker) for worker in raw["prefill"]),
        transfers=Transfers((near[0], near[1], near[2]), pairs),
        kv_bytes_per_token=raw["kv_bytes_per_token"],
        handshake_s=raw["handshake_s"],
    )
    return Inputs(
        view=view,
        hits=raw["hits"],
        kept={name: Kept(*found) for name, found in raw["kept"].items()},
        request=RouteRequest(**route),
        config=RouterConfig(**raw["config"]),
        seed=raw["seed"],
    )


def _worker(worker: WorkerView) -> dict[str, Any]:
    bare = asdict(replace(worker.load, steps=(), transfers=(), kv_digest=None))
    return {
        "member": asdict(worker.member),
        "load": {name: value for name, value in bare.items() if value not in ((), [], None)},
        "age_s": worker.age_s,
        "in_flight": [worker.in_flight_tokens, worker.in_flight_requests],
        "state": worker.state.value,
        "prefill_times": asdict(worker.times.prefill),
        "decode_times": asdict(worker.times.decode),
        "kv_blind": worker.kv_blind,
        "adapters": sorted(worker.adapters),
        "group": worker.group,
    }


def _read_worker(raw: Mapping[str, Any]) -> WorkerView:
    member = dict(raw["member"])
    tokens, requests = raw["in_flight"]
    tiers = tuple(TierLoad(*tier) for tier in raw["load"].get("tiers", ()))
    return WorkerView(
        Member(**member | {"role": Role(member["role"])}),
        WorkerLoad(**raw["load"] | {"tiers": tiers}),
        raw["age_s"],
        tokens,
        requests,
        WorkerState(raw["state"]),
        times=WorkerTimes(
            prefill=PrefillTimes(**raw["prefill_times"]), decode=DecodeTimes(**raw["decode_times"])
        ),
        kv_blind=raw["kv_blind"],
        adapters=frozenset(raw["adapters"]),
        group=raw["group"],
    )
