"""The cluster as one gateway knows it at one moment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np
import numpy.typing as npt

from baton.protos.types import Member, WorkerLoad
from baton.router.times import H100_8B, Near, Transfers, WorkerTimes

Floats = npt.NDArray[np.float64]


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
    `adapters` are resident there. `rack` and the address's host say what it is near to. Workers of
    one data-parallel `group` step together, so the slowest sets the pace of all.
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
    rack: str = ""
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


class Column(IntEnum):
    """What a row of `Columns.table` holds, in the order of `_figures`.

    WAIT_S: until a prompt that is sent there now is begun. STEP_S: the next decode step; ITL_S: the
    time between tokens that requests there see, other prompts' steps included. CHUNK_S: what every
    chunk of a prompt costs whatever its size.
    """

    USABLE = 0
    AGE_S = 1
    KV_BLIND = 2
    PENDING_TOKENS = 3
    PENDING_REQUESTS = 4
    IN_FLIGHT_REQUESTS = 5
    KV_TOKENS = 6
    USED_BLOCKS = 7
    FREE_BLOCKS = 8
    WAIT_S = 9
    STEP_S = 10
    ITL_S = 11
    CHUNK_S = 12
    CHUNK_TOKENS = 13
    TOKEN_S = 14
    PAIR_S = 15
    DECODE_FIXED_S = 16
    DECODE_ROW_S = 17
    DECODE_KV_TOKEN_S = 18


class Columns:
    """A pool as arrays, so that pricing 256 workers takes a few dozen array operations.

    table: float64 [len(Column), num_workers]; `workers` are in the same order.
    """

    def __init__(self, workers: Iterable[WorkerView]) -> None:
        self.workers = list(workers)
        self.rows = {worker.member.worker_id: row for row, worker in enumerate(self.workers)}
        self.table = np.zeros((len(Column), len(self.workers)))
        for row, worker in enumerate(self.workers):
            self.table[:, row] = _figures(worker)
        self._places = [(worker.host, worker.rack) for worker in self.workers]
        self.grouped = any(worker.group for worker in self.workers)
        self.everybody = np.ones(len(self.workers), dtype=bool)
        # Counts and a bound, so that plans need not look where there is nothing to find.
        self.num_unusable = int((self.table[Column.USABLE] == 0).sum())
        self.num_blind = int((self.table[Column.KV_BLIND] != 0).sum())
        self.oldest_s = float(self.table[Column.AGE_S].max(initial=0.0))
        # A prefix index's to set: which bit stands for which row, as of a version of that index.
        self.row_of_bit: dict[int, int] = {}
        self.bit_of_row = np.zeros(0, dtype=np.intp)
        self.bits_version: tuple[int, int] = (0, -1)

    def replace(self, worker: WorkerView) -> None:
        """A newer view of a worker that is in here already."""
        row = self.rows[worker.member.worker_id]
        self.workers[row] = worker
        self._places[row] = (worker.host, worker.rack)
        figures, before = _figures(worker), self.table[:, row]
        self.num_unusable += int(before[Column.USABLE]) - int(figures[Column.USABLE])
        self.num_blind += int(figures[Column.KV_BLIND]) - int(before[Column.KV_BLIND])
        self.oldest_s = max(self.oldest_s, figures[Column.AGE_S])
        self.table[:, row] = figures

    def near(self, row: int, pool: Columns, other: int) -> Near:
        """How far this pool's worker is from another's; without an address or a rack, far."""
        host, rack = self._places[row]
        other_host, other_rack = pool._places[other]
        if host and host == other_host:
            return Near.HOST
        return Near.RACK if rack and rack == other_rack else Near.FAR

    def __len__(self) -> int:
        return len(self.workers)

    def __getitem__(self, column: Column) -> Floats:
        """float64 [num_workers]"""
        values: Floats = self.table[column]
        return values


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


def _figures(worker: WorkerView) -> tuple[float, ...]:
    load, prefill, decode = worker.load, worker.times.prefill, worker.times.decode
    num_requests = worker.pending_requests
    num_tokens = worker.pending_tokens
    step_s = decode.predict(num_requests, load.running_kv_tokens)
    chunk_s = prefill.fixed_s + num_requests * prefill.per_row_s
    wait_s = num_tokens * (prefill.per_token_s + chunk_s / prefill.chunk_tokens)
    if load.num_running:
        # A step is under way, and on average half of it is left.
        wait_s += 0.5 * step_s
    return (
        worker.state is WorkerState.UP and not load.draining,
        worker.age_s,
        worker.kv_blind,
        num_tokens,
        num_requests,
        worker.in_flight_requests,
        load.running_kv_tokens,
        load.total_blocks - load.free_blocks,
        load.free_blocks if load.total_blocks else math.inf,
        wait_s,
        step_s,
        max(step_s, load.itl_s if load.num_running else 0.0),
        chunk_s,
        prefill.chunk_tokens,
        prefill.per_token_s,
        prefill.per_pair_s,
        decode.fixed_s,
        decode.per_row_s,
        decode.per_kv_token_s,
    )
