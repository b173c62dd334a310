"""Does the prefix index say what workers hold? Gaps and divergence, counted and repaired."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence

from baton.gateway.seam import Figure
from baton.protos.clock import Clock
from baton.protos.types import KvDigest
from baton.router.prefix_index import PrefixIndex
from baton.router.view import WorkerView

_log = logging.getLogger(__name__)

# A worker whose events are wrong again and again is asked for a snapshot this often; in between it
# counts as holding nothing, and plans say `kv_blind`.
_REPAIR_EVERY_S = 10.0
_KINDS = ("gap", "divergence")


class KvAudit:
    """Compares digests, and remembers whose part of the index is to be made anew."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: Counter[tuple[str, str]] = Counter()
        self._blind: set[str] = set()
        self._repaired_s: dict[str, float] = {}
        self._num_dropped = 0

    def gap(self, worker_id: str) -> None:
        """Event batches are missing."""
        self._wrong(worker_id, "gap")

    def check(self, worker_id: str, index: PrefixIndex, reported: KvDigest) -> bool:
        """True if what is believed of the worker is what it says it holds."""
        believed = index.digest(worker_id)
        self._num_dropped = index.num_dropped
        if believed is None or believed == reported:
            return True
        _log.warning(
            "the index says that worker %s holds %d blocks, the worker says %d: %s",
            worker_id,
            believed.num_blocks,
            reported.num_blocks,
            "or other ones" if believed.num_blocks == reported.num_blocks else "events were lost",
        )
        self._wrong(worker_id, "divergence")
        return False

    def due(self) -> list[str]:
        """Workers to be asked for a snapshot now."""
        now_s = self._clock.now_s()
        due = [
            worker_id
            for worker_id in self._blind
            if now_s - self._repaired_s.get(worker_id, -_REPAIR_EVERY_S) >= _REPAIR_EVERY_S
        ]
        for worker_id in due:
            self._blind.discard(worker_id)
            self._repaired_s[worker_id] = now_s
        return due

    def forget(self, worker_id: str) -> None:
        self._blind.discard(worker_id)
        self._repaired_s.pop(worker_id, None)

    def figures(self, workers: Sequence[WorkerView]) -> Iterator[Figure]:
        """Counts since the start, by worker and kind."""
        for worker_id, kind in itertools.product((w.member.worker_id for w in workers), _KINDS):
            yield Figure(
                "kv_events_wrong",
                "Times that a worker's KV events had a gap, or led to another cache than it has.",
                (("worker", worker_id), ("kind", kind)),
                self._found[worker_id, kind],
            )
        yield Figure(
            "prefix_index_dropped_blocks",
            "Blocks that the prefix index refused over its limit.",
            (),
            self._num_dropped,
        )

    def _wrong(self, worker_id: str, kind: str) -> None:
        self._found[worker_id, kind] += 1
        self._blind.add(worker_id)
