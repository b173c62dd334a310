"""Which workers of a pool are worth pricing for one request.

Whoever holds no more of a prompt than another worker and is busier is not the best choice. How
busy workers are is kept in order as their figures change (`Columns.orders`): a request looks at a
few.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from baton.router.pools import Mask
from baton.router.promises import Held
from baton.router.view import Columns

# A worker is left out when so many others beat it. Lengths of prefixes beyond the longest few count
# as one.
_KEPT: Final = 2
_MAX_LENGTHS: Final = 8
# So many are looked up one by one in the order of a pool; of more, the order is gone through.
_FEW: Final = 4


class Shortlist:
    """Chooses from one pool for one request. usable: bool [num_workers]."""

    def __init__(
        self, pool: Columns, usable: Mask, held: Sequence[Held], rng: random.Random
    ) -> None:
        self._pool = pool
        self._usable = None if usable is pool.everybody else usable.tolist()
        self._held = held
        self._rng = rng

    def best(self, kind: int) -> list[int]:
        """Rows that fewer than `_KEPT` others beat both in how busy they are, by that one of the
        pool's orders, and in what they hold. All of a small pool, which keeps no orders.
        """
        pool = self._pool
        if not pool.orders:
            return self.usable(range(len(pool)))
        order = _shuffled(pool.orders[kind], self._rng)
        limit, taken = len(order), 0
        rows: list[int] = []
        places: list[int] = []
        for workers, _ in self._held[:_MAX_LENGTHS]:
            workers &= pool.all_bits
            if not workers:
                continue
            taken |= workers
            if workers.bit_count() <= _FEW:
                found = self._places(workers, kind, limit)
            else:
                found = self._first_of(order[:limit], workers)
            rows += [row for _, row in found]
            places += [place for place, _ in found]
            if len(places) >= _KEPT:
                # Whoever comes later holds less and is busier.
                limit = sorted(places)[_KEPT - 1]
        rows += [row for _, row in self._first_of(order[:limit], ~taken)]
        return self.usable(rows)

    def usable(self, rows: Iterable[int]) -> list[int]:
        """Those of them that may be planned for."""
        may = self._usable
        return list(rows) if may is None else [row for row in rows if may[row]]

    def first(self, wanted: Callable[[int], bool]) -> list[int]:
        """The least busy of those that are wanted, if there are any."""
        for order in self._pool.orders[-1:]:
            for _, row in order:
                if wanted(row) and (self._usable is None or self._usable[row]):
                    return [row]
        return []

    def _places(self, workers: int, kind: int, limit: int) -> list[tuple[int, int]]:
        """As `_first_of`, for so few workers that each is looked up."""
        pool, usable = self._pool, self._usable
        order, found = pool.orders[kind], []
        while workers:
            bit = workers & -workers
            workers ^= bit
            row = pool.row_of_bit[bit]
            place = bisect_left(order, (pool.scores[row][kind], row))
            if place < limit and (usable is None or usable[row]):
                found.append((place, row))
        return found if len(found) < 2 else sorted(found)[:_KEPT]

    def _first_of(self, order: Sequence[tuple[float, int]], workers: int) -> list[tuple[int, int]]:
        """Where in the order the first usable ones of these workers are, and their rows. Those
        that have no bit count as everybody else.
        """
        bits, usable = self._pool.bits, self._usable
        found = []
        for place, (_, row) in enumerate(order):
            if (bits[row] & workers or (workers < 0 and not bits[row])) and (
                usable is None or usable[row]
            ):
                found.append((place, row))
                if len(found) == _KEPT:
                    break
        return found


def num_tokens(held: Sequence[Held], bit: int) -> int:
    """Leading tokens of the prompt that the worker of this bit holds."""
    for workers, length in held:
        if bit & workers:
            return length
    return 0


def _shuffled(order: list[tuple[float, int]], rng: random.Random) -> list[tuple[float, int]]:
    """Begins anywhere among those that are the least busy."""
    if order[0][0] != order[1][0]:
        return order
    num_equal = bisect_right(order, (order[0][0], len(order)))
    start = int(rng.random() * num_equal)
    return order[start:num_equal] + order[:start] + order[num_equal:]
