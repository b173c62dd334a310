"""The cluster as one gateway knows it at one moment."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from baton.protos.types import Member, Role, WorkerLoad
from baton.router.times import H100_8B, Near, Transfers, WorkerTimes

Floats = npt.NDArray[np.float64]

# Pools of more workers than this keep them in order.
_LARGE: Final = 8
# The request that orders are for: prompt tokens, prices of a second of its decode steps and of a
# second that another one waits, and of its share of the KV memory.
_TYPICAL_TOKENS: Final = 4096
# How much a prompt's length counts beside what runs there: an order for every so many tokens.
_LENGTHS: Final = (512, 2048, 8192, 32768)
_TYPICAL_WEIGHT: Final = 12.0
_STALL_WEIGHT: Final = 0.05
_TYPICAL_ROOM_S: Final = 0.3


class WorkerState(StrEnum):
    """How this gateway stands with a worker. Only UP workers are planned for.

    CONNECTING: no hello yet, or the link broke and is being made again. REFUSED: its hello does
    not fit the fleet (`WorkerView.detail` says why). SUPERSEDED: a newer incarnation took its name.
    """

    CONNECTING = "connecting"
    UP = "up"
    REFUSED = "refused"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker: its last report, the report's age, and what was sent there since.

    `in_flight_tokens` are prompt tokens to compute there that its last report cannot know of yet,
    `in_flight_requests` the requests. `times` are its time models, learned or configured.
    `kv_blind`: this gateway does not know what the worker's prefix cache holds.
    `adapters` are resident there. Workers of one data-parallel `group` step together, so the
    slowest sets the pace of all.
    """

    member: Member
    load: WorkerLoad
    age_s: float
    in_flight_tokens: int = 0
    in_flight_requests: int = 0
    state: WorkerState = WorkerState.UP
    detail: str = ""
    times: WorkerTimes = H100_8B.decode_pool
    kv_blind: bool = False
    adapters: frozenset[str] = frozenset()
    group: str = ""

    @property
    def pending_tokens(self) -> int:
        """Prompt tokens that wait there, reported or just sent."""
        return self.load.queued_prefill_tokens + self.in_flight_tokens

    @property
    def pending_requests(self) -> int:
        """Requests that run or wait there, reported or just sent."""
        return self.load.num_running + self.load.num_waiting + self.in_flight_requests

    @property
    def host(self) -> str:
        return self.member.address.rpartition(":")[0]


class Figures(NamedTuple):
    """What is priced of one worker.

    waiting_requests: those of the pending ones that wait, wherever their prompts are computed.
    wait_s: until a prompt that is sent there now is begun. step_s: the next decode step; itl_s: the
    time between tokens that requests there see, other prompts' steps included; pace_s: `step_s` of
    the slowest in its group. chunk_s: what every chunk of a prompt costs whatever its size.
    load_near_s, load_far_s: a token's KV to its pool from host memory and from its disk; 0 where
    there is none, or nothing was loaded yet.
    """

    usable: bool
    age_s: float
    kv_blind: bool
    pending_tokens: int
    pending_requests: int
    waiting_requests: int
    in_flight_requests: int
    kv_tokens: int
    used_blocks: int
    free_blocks: float
    unplaced_blocks: int
    wait_s: float
    step_s: float
    itl_s: float
    pace_s: float
    chunk_s: float
    chunk_tokens: int
    token_s: float
    pair_s: float
    decode_fixed_s: float
    decode_row_s: float
    decode_kv_token_s: float
    load_near_s: float
    load_far_s: float


class Column(IntEnum):
    """The same as columns of arrays, in the order of `Figures`."""

    USABLE = 0
    AGE_S = 1
    KV_BLIND = 2
    PENDING_TOKENS = 3
    PENDING_REQUESTS = 4
    WAITING_REQUESTS = 5
    IN_FLIGHT_REQUESTS = 6
    KV_TOKENS = 7
    USED_BLOCKS = 8
    FREE_BLOCKS = 9
    UNPLACED_BLOCKS = 10
    WAIT_S = 11
    STEP_S = 12
    ITL_S = 13
    PACE_S = 14
    CHUNK_S = 15
    CHUNK_TOKENS = 16
    TOKEN_S = 17
    PAIR_S = 18
    DECODE_FIXED_S = 19
    DECODE_ROW_S = 20
    DECODE_KV_TOKEN_S = 21
    LOAD_NEAR_S = 22
    LOAD_FAR_S = 23


class Busy(IntEnum):
    """What a worker's load keeps it from: a prompt, or only the decoding of one, which is of
    some length: `decoding`.
    """

    COMPUTING = 0
    DECODING = 1


def decoding(num_tokens: int) -> int:
    """The place in a decode pool's orders of that which is for prompts about so long."""
    return Busy.DECODING + bisect_left(_LENGTHS[1:], 2 * num_tokens)


class Columns:
    """A pool's figures by worker, and as arrays for whoever compares all workers.

    `figures` are in the order of `workers`. `pool[Column.X]` is float64 [num_workers].
    """

    def __init__(self, workers: Iterable[WorkerView]) -> None:
        self.workers = list(workers)
        self.ids = [worker.member.worker_id for worker in self.workers]
        self.rows = {worker_id: row for row, worker_id in enumerate(self.ids)}
        self.figures = [_figures(worker) for worker in self.workers]
        self._decodes = any(w.member.role is not Role.PREFILL for w in self.workers)
        self._groups: dict[str, list[int]] = {}
        for row, worker in enumerate(self.workers):
            if worker.group:
                self._groups.setdefault(worker.group, []).append(row)
        self._places = [(worker.host, worker.member.rack) for worker in self.workers]
        self._by_host: dict[str, list[int]] = {}
        self._by_rack: dict[str, list[int]] = {}
        for row, (host, rack) in enumerate(self._places):
            if host:
                self._by_host.setdefault(host, []).append(row)
            if rack:
                self._by_rack.setdefault(rack, []).append(row)
        self.everybody = np.ones(len(self.workers), dtype=bool)
        # Counts and a bound, so that plans need not look where there is nothing to find.
        self.num_unusable = sum(not each.usable for each in self.figures)
        self.num_blind = sum(each.kv_blind for each in self.figures)
        self.oldest_s = max((each.age_s for each in self.figures), default=0.0)
        # How many requests wait or run here, and the sum of how long each waits: whole numbers, so
        # that they are the same whatever was replaced in between.
        self._num_pending = sum(each.pending_requests for each in self.figures)
        self._sum_wait_us = sum(map(_sum_wait_us, self.figures))
        self._table = np.zeros((len(self.workers), len(Figures._fields)))
        self._changed = set(range(len(self.workers)))
        for group in self._groups:
            self._keep_pace(group)
        # Of a large pool, by `Busy` and length: (how busy, row), least first.
        self.orders: list[list[tuple[float, int]]] = []
        self.scores: list[tuple[float, ...]] = []
        if len(self.workers) > _LARGE:
            self.scores = [_scores(each, decodes=self._decodes) for each in self.figures]
            self.orders = [
                sorted((each[kind], row) for row, each in enumerate(self.scores))
                for kind in range(len(self.scores[0]))
            ]
        # See `set_bits`, and the version of the index that set them.
        self.bits: list[int] = []
        self.all_bits = 0
        self.row_of_bit: dict[int, int] = {}
        self.bits_version: tuple[int, int] = (0, -1)

    def replace(self, worker: WorkerView) -> None:
        """A newer view of a worker that is in here already; its place and group stay."""
        row = self.rows[worker.member.worker_id]
        self.workers[row] = worker
        before, figures = self.figures[row], _figures(worker)
        self.num_unusable += before.usable - figures.usable
        self.num_blind += figures.kv_blind - before.kv_blind
        self.oldest_s = max(self.oldest_s, figures.age_s)
        self._num_pending += figures.pending_requests - before.pending_requests
        self._sum_wait_us += _sum_wait_us(figures) - _sum_wait_us(before)
        self.figures[row] = figures
        self._changed.add(row)
        if self.orders:
            self._put_in_order(row, _scores(figures, decodes=self._decodes))
        if worker.group:
            self._keep_pace(worker.group)

    @property
    def mean_wait_s(self) -> float:
        """How long those that are here wait on average."""
        return 1e-6 * self._sum_wait_us / max(self._num_pending, 1)

    def set_bits(self, bits: list[int]) -> None:
        """A prefix index's: which bit stands for each row; 0: none."""
        self.bits = bits
        self.row_of_bit = {bit: row for row, bit in enumerate(bits) if bit}
        self.all_bits = sum(self.row_of_bit)

    def near(self, row: int, pool: Columns, other: int) -> Near:
        """How far this pool's worker is from another's; without an address or a rack, far."""
        host, rack = self._places[row]
        other_host, other_rack = pool._places[other]
        if host and host == other_host:
            return Near.HOST
        return Near.RACK if rack and rack == other_rack else Near.FAR

    def beside(self, pool: Columns, other: int) -> list[int]:
        """The least busy worker on the host of another pool's, and in its rack."""
        host, rack = pool._places[other]
        rows = [self._by_host.get(host, ()), self._by_rack.get(rack, ())]
        if not self.scores:
            return [row for each in rows for row in each]
        return [min(each, key=lambda row: self.scores[row][Busy.DECODING]) for each in rows if each]

    def __len__(self) -> int:
        return len(self.workers)

    def __getitem__(self, column: Column) -> Floats:
        """float64 [num_workers]"""
        for row in self._changed:
            self._table[row] = self.figures[row]
        self._changed.clear()
        values: Floats = self._table[:, column]
        return values

    def _put_in_order(self, row: int, scores: tuple[float, ...]) -> None:
        before, self.scores[row] = self.scores[row], scores
        for order, old, new in zip(self.orders, before, scores, strict=True):
            if old != new:
                del order[bisect_left(order, (old, row))]
                insort(order, (new, row))

    def _keep_pace(self, group: str) -> None:
        """The slowest step of a data-parallel group is that of all."""
        rows = self._groups[group]
        pace_s = max(self.figures[row].step_s for row in rows)
        for row in rows:
            self.figures[row] = self.figures[row]._replace(pace_s=pace_s)
        self._changed.update(rows)


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Everything that a plan looks at, beside the prefix index.

    Whoever plans often over many workers passes the pools as `Columns` and replaces what changed.
    """

    decode: Sequence[WorkerView]
    prefill: Sequence[WorkerView]
    transfers: Transfers = field(default_factory=Transfers)
    kv_bytes_per_token: int = H100_8B.kv_bytes_per_token
    handshake_s: float = H100_8B.handshake_s
    columns: tuple[Columns, Columns] | None = None

    def pools(self) -> tuple[Columns, Columns]:
        """Decode and prefill workers as columns."""
        return self.columns or (Columns(self.decode), Columns(self.prefill))


def _sum_wait_us(figures: Figures) -> int:
    return figures.pending_requests * round(1e6 * figures.wait_s)


def _scores(figures: Figures, *, decodes: bool) -> tuple[float, ...]:
    """How busy a worker is, with prompts of its own and for decoding ones of each length: about
    what a request that it holds nothing of would cost there. Only orders workers;
    `router/costs.py` prices them.
    """
    compute_s = _TYPICAL_TOKENS * (figures.token_s + figures.chunk_s / figures.chunk_tokens)
    if not decodes:
        return (figures.wait_s + compute_s,)
    num_others = figures.pending_requests
    num_blocks = figures.used_blocks + figures.free_blocks
    full = (figures.used_blocks + figures.unplaced_blocks) / num_blocks
    # About the slope of `miss_probability`.
    room_s = _TYPICAL_ROOM_S * num_others * full**7 / (1 + full**8) ** 2
    weight = _TYPICAL_WEIGHT * (1 + num_others)
    row_s = _TYPICAL_WEIGHT * figures.step_s + weight * figures.decode_row_s + room_s
    token_s = weight * figures.decode_kv_token_s
    computing_s = figures.wait_s + compute_s * (1 + _STALL_WEIGHT * num_others)
    return (
        computing_s + row_s + _TYPICAL_TOKENS * token_s,
        *[row_s + length * token_s for length in _LENGTHS],
    )


def _figures(worker: WorkerView) -> Figures:
    load, prefill, decode = worker.load, worker.times.prefill, worker.times.decode
    num_requests = worker.pending_requests
    num_tokens = worker.pending_tokens
    step_s = decode.predict(num_requests, load.running_kv_tokens)
    chunk_s = prefill.fixed_s + num_requests * prefill.per_row_s
    load_s = {tier.name: tier.load_s_per_token for tier in load.tiers}
    wait_s = num_tokens * (prefill.per_token_s + chunk_s / prefill.chunk_tokens)
    if load.num_running:
        # A step is under way, and on average half of it is left.
        wait_s += 0.5 * step_s
    return Figures(
        worker.state is WorkerState.UP and not load.draining,
        worker.age_s,
        worker.kv_blind,
        num_tokens,
        num_requests,
        load.num_waiting,
        worker.in_flight_requests,
        load.running_kv_tokens,
        load.total_blocks - load.free_blocks,
        load.free_blocks if load.total_blocks else math.inf,
        load.unplaced_blocks,
        wait_s,
        step_s,
        max(step_s, load.itl_s if load.num_running else 0.0),
        step_s,
        chunk_s,
        prefill.chunk_tokens,
        prefill.per_token_s,
        prefill.per_pair_s,
        decode.fixed_s,
        decode.per_row_s,
        decode.per_kv_token_s,
        load_s.get("cpu", 0.0),
        load_s.get("disk", 0.0),
    )
