"""The cost policy and those that force its kind. `docs/router.md` lists their reasons."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable
from typing import Final, TypeVar

from baton.protos.types import Member
from baton.router.config import RouterConfig
from baton.router.costs import DecodeAt, LocalAt, PairAt, PrefillAt, Prices
from baton.router.decision import NOT_KEPT, Plan, RouteRequest
from baton.router.pools import Pools, prefix_hits
from baton.router.prefix_index import Prefixes
from baton.router.shortlist import Shortlist, num_tokens
from baton.router.times import Near, TransferTimes
from baton.router.view import Busy, ClusterView, Columns, WorkerView, decoding

# Pairs of the best so many decode and prefill workers are priced with the transfer between them.
_NUM_PAIRED: Final = 3
# Options that a plan remembers of each kind.
_NUM_REMEMBERED: Final = 3
_NOISE_S: Final = 1e-9


def cost(
    view: ClusterView,
    index: Prefixes,
    request: RouteRequest,
    config: RouterConfig,
    rng: random.Random,
) -> Plan:
    """The cheapest of local and remote over all decode workers."""
    priced = _Priced(view, index, request, config, rng)
    pools = priced.pools
    local, remote = priced.local(), priced.remote()
    best_local = local[0]
    if remote and remote[0].cost_s < best_local.cost_s:
        # The margin may have paid for the handshake; then it was not cheaper outright.
        best = remote[0]
        outright = best.cost_s + best.prefill.preference_s <= best_local.cost_s
        reason = "remote_cheaper" if outright else "remote_idle"
        return priced.plan(best, local, remote, pools.reason(reason))
    tail = "short_uncached_tail" if best_local.at.short_tail else "local_cheaper"
    return priced.plan(best_local, local, remote, pools.reason(pools.why_none or tail))


def always_local(
    view: ClusterView,
    index: Prefixes,
    request: RouteRequest,
    config: RouterConfig,
    rng: random.Random,
) -> Plan:
    """The decode worker where a local prefill is cheapest."""
    priced = _Priced(view, index, request, config, rng)
    local = priced.local()
    return priced.plan(local[0], local, [], priced.pools.reason("always_local"))


def always_remote(
    view: ClusterView,
    index: Prefixes,
    request: RouteRequest,
    config: RouterConfig,
    rng: random.Random,
) -> Plan:
    """The cheapest remote plan, whatever local would cost; local where there is no remote."""
    priced = _Priced(view, index, request, config, rng)
    remote = priced.remote(short_tails=True)
    local = [] if remote else priced.local()
    reason = priced.pools.why_none or "always_remote"
    return priced.plan((remote or local)[0], local, remote, priced.pools.reason(reason))


_Option = TypeVar("_Option", LocalAt, PairAt)


class _Priced:
    """One request's prices, and the options worth a look."""

    def __init__(
        self,
        view: ClusterView,
        index: Prefixes,
        request: RouteRequest,
        config: RouterConfig,
        rng: random.Random,
    ) -> None:
        self.pools = pools = Pools(view, request, config)
        self._request = request
        self._config = config
        self._rng = rng
        self._prefill: list[PrefillAt] = []
        far, rack, host = view.transfers.by_nearness
        # It is the same how far workers are from each other.
        self._alike = far is rack and far is host
        self._held = prefix_hits(index, request, (pools.decode, pools.prefill))
        self._kept = {} if request.prompt_logprobs else index.kept(request.chains)
        self._prices = Prices(
            request,
            config,
            kv_bytes_per_token=view.kv_bytes_per_token,
            handshake_s=view.handshake_s,
            far=view.transfers.by_nearness[Near.FAR],
            backlog_s=pools.prefill.mean_wait_s,
        )
        prefill = Shortlist(pools.prefill, pools.usable_prefill, self._held, rng)
        self._prefill_rows = [] if pools.why_none else self._with_kept(prefill, pools.prefill)
        if self._prefill_rows and request.adapter:
            rows = [*self._prefill_rows, *self._adapted(prefill, pools.prefill)]
            self._prefill_rows = [*dict.fromkeys(rows)]
        chosen = Shortlist(pools.decode, pools.usable, self._held, rng)
        self._local_rows = self._with_kept(chosen, pools.decode)
        rows = [] if pools.why_none else chosen.best(decoding(request.num_prompt_tokens))
        rows += self._special_rows(chosen)
        self._decode = self._decode_at(dict.fromkeys(self._local_rows + rows))

    def local(self) -> list[LocalAt]:
        """The cheapest local options, cheapest first."""
        local, decode = self._prices.local, self._decode
        return self._sorted([local(decode[row]) for row in self._local_rows])[:_NUM_REMEMBERED]

    def remote(self, *, short_tails: bool = False) -> list[PairAt]:
        """The best prefill worker for each of the cheapest decode workers, cheapest first."""
        if self.pools.why_none:
            return []
        decode = [*self._decode.values()]
        # Where a decode worker has next to nothing to compute there is nobody to protect from it.
        tails = any(at.short_tail for at in decode)
        if tails and not short_tails:
            decode = [at for at in decode if not at.short_tail]
        noise = self._rng.random
        ordered = sorted([(at.own_s + noise() * _NOISE_S, at.row, at) for at in decode])
        if not ordered:
            return []
        self._prefill = first, *others = self._prefill_at(prefer_idle=not tails)
        _, _, at = ordered[0]
        pairs = [best := self._pair(at, first)]
        for _, _, at in ordered[1:_NUM_PAIRED]:
            if _least_s(at, first) < best.cost_s:
                pairs.append(self._pair(at, first))
                best = min(best, pairs[-1], key=_cost_s)
        # The rest of the pairs differ in little but the way between the two.
        at = best.at
        pairs += [self._pair(at, other) for other in others if _least_s(at, other) < best.cost_s]
        return self._sorted(pairs)[:_NUM_REMEMBERED]

    def plan(
        self, best: LocalAt | PairAt, local: list[LocalAt], remote: list[PairAt], reason: str
    ) -> Plan:
        """The plan for one of the options."""
        pools, prices = self.pools, self._prices
        decode, prefill = pools.decode.ids, pools.prefill.ids
        candidates = [prices.local_candidate(each, decode[each.at.row]) for each in local]
        candidates += [
            prices.remote_candidate(each, decode[each.at.row], prefill[each.prefill.row])
            for each in remote
        ]
        targets: tuple[Member, ...] = ()
        pull_from: Member | None = None
        if isinstance(best, PairAt):
            targets = self._targets(best)
            if best.prefill.pull_row >= 0:
                # Where the one that decodes has as much, the way is there already.
                same = best.at.num_cached == best.prefill.num_cached
                row = best.at.row if same else best.prefill.pull_row
                pull_from, reason = pools.decode.workers[row].member, f"{reason},pull"
        return Plan(
            decode=pools.decode.workers[best.at.row].member,
            prefill=targets,
            reason=pools.named_cold(pools.named_blind(reason), best.at.row),
            ttft_s=best.ttft_s,
            num_cached_tokens=best.at.num_cached,
            num_new_tokens=best.prefill.num_new if isinstance(best, PairAt) else best.at.num_new,
            candidates=tuple(candidates),
            pull_from=pull_from,
        )

    def _targets(self, best: PairAt) -> tuple[Member, ...]:
        """The prefill worker that was chosen, and others for its failure."""
        workers, first = self.pools.prefill.workers, best.prefill.row
        rows = [first, *(at.row for at in self._prefill if at.row != first)]
        return tuple([workers[row].member for row in rows[: self._config.max_prefill_targets]])

    def _sorted(self, options: list[_Option]) -> list[_Option]:
        """Cheapest first; the least of equals is a random one."""
        if len(options) < 2:
            return options
        noise = self._rng.random
        keys = [option.cost_s + noise() * _NOISE_S for option in options]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        return [options[place] for place in order]

    def _pair(self, at: DecodeAt, prefill: PrefillAt) -> PairAt:
        return self._prices.pair(at, prefill, self._way(at.row, prefill.row))

    def _way(self, row: int, prefill_row: int, *, back: bool = False) -> TransferTimes:
        """Pushes to a decode worker from a prefill worker, or back."""
        decode, other, transfers = self.pools.decode, self.pools.prefill, self.pools.view.transfers
        if self._alike and not transfers.pairs:
            return transfers.by_nearness[Near.FAR]
        near = decode.near(row, other, prefill_row)
        sender, receiver = other.ids[prefill_row], decode.ids[row]
        return transfers.between(*((receiver, sender) if back else (sender, receiver)), near)

    def _prefill_at(self, *, prefer_idle: bool) -> list[PrefillAt]:
        """The best few prefill workers, cheapest first."""
        pools, figures = self.pools, self.pools.prefill.figures
        price, noise = self._prices.prefill, self._rng.random
        lent, source = max((self._lent(at), row) for row, at in self._decode.items())
        found = []
        for row in self._prefill_rows:
            num_cached = num_tokens(self._held, pools.prefill.bits[row])
            kept = self._kept.get(pools.prefill.ids[row], NOT_KEPT)
            held = (num_cached, kept, self._extra_s(pools.prefill, row))
            at = price(row, figures[row], *held, prefer_idle=prefer_idle)
            if lent[0] > at.num_cached:
                at = self._pulled(at, source, lent)
            found.append((at.own_s + noise() * _NOISE_S, row, at))
        found.sort()
        return [at for _, _, at in found[:_NUM_PAIRED]]

    def _lent(self, at: DecodeAt) -> tuple[int, float]:
        """How many tokens that worker can give away, and minus the seconds of loading them."""
        load_s, _, num_tokens = self._prices.brought(at.figures, at.num_cached, at.kept)
        return num_tokens, -load_s

    def _pulled(self, prefill: PrefillAt, row: int, lent: tuple[int, float]) -> PrefillAt:
        """What it costs there if what the decode worker in that row has may be fetched first."""
        times = self._way(row, prefill.row, back=True)
        return self._prices.pulled(prefill, row, lent, times)

    def _decode_at(self, rows: Iterable[int]) -> dict[int, DecodeAt]:
        pool = self.pools.decode
        price, figures = self._prices.decode, pool.figures
        return {
            row: price(
                row,
                figures[row],
                num_tokens(self._held, pool.bits[row]),
                self._kept.get(pool.ids[row], NOT_KEPT),
                self._extra_s(pool, row),
            )
            for row in rows
        }

    def _extra_s(self, pool: Columns, row: int) -> float:
        request = self._request
        if not request.adapter and not request.last_worker:
            return 0.0
        return _extra_s(request, self._config, pool.workers[row])

    def _with_kept(self, chosen: Shortlist, pool: Columns) -> list[int]:
        """The best for computing a prompt, and those that have most of it in slower tiers."""
        rows = chosen.best(Busy.COMPUTING)
        if self._kept:
            here = [name for name in self._kept if name in pool.rows]
            most = heapq.nlargest(_NUM_PAIRED, here, key=self._kept.__getitem__)
            rows = [*dict.fromkeys(rows + chosen.usable(pool.rows[name] for name in most))]
        return rows

    def _adapted(self, chosen: Shortlist, pool: Columns) -> list[int]:
        """The least busy worker on whose device the request's adapter is."""
        return chosen.first(lambda row: self._request.adapter in pool.workers[row].adapters)

    def _special_rows(self, chosen: Shortlist) -> list[int]:
        """Workers that something else than their load speaks for."""
        request, pool = self._request, self.pools.decode
        rows = []
        if request.last_worker in pool.rows:
            rows += chosen.usable([pool.rows[request.last_worker]])
        if request.adapter:
            rows += self._adapted(chosen, pool)
        if self._prefill_rows and not self._alike:
            rows += chosen.usable(pool.beside(self.pools.prefill, self._prefill_rows[0]))
        return rows


def _least_s(at: DecodeAt, prefill: PrefillAt) -> float:
    """What a pair of them costs at least: neither waiting for room nor late KV make it less."""
    return at.decode_s + at.extra_s + prefill.own_s


def _cost_s(option: LocalAt | PairAt) -> float:
    return option.cost_s


def _extra_s(request: RouteRequest, config: RouterConfig, worker: WorkerView) -> float:
    """An adapter to load, less what is granted to the session's last worker."""
    price_s = 0.0
    if request.adapter and request.adapter not in worker.adapters:
        price_s = config.adapter_load_s
    last = request.last_worker == worker.member.worker_id
    return price_s - config.affinity_s if last else price_s
