"""How surely something is missed: an objective, or room."""

from __future__ import annotations

from typing import Final

# Who loses when KV memory runs out: as many as run there now will come while a request runs
# (Little's law) and find no room, and those that run are sent back to the queue.
_LOSE_ROOM: Final = 2.0


def miss_probability(ratio: float) -> float:
    """Of an objective, by predicted over wanted time: 1 / (1 + ratio ** -8).

    How surely a request misses an objective that it is predicted to meet by a given factor: at 0.8
    of it one in seven, at 0.5 one in 250, at 1.25 six in seven.
    """
    square = ratio * ratio
    fourth = square * square
    eighth = fourth * fourth
    # However far beyond the objective, this is a large number, but never infinite.
    return eighth / (1.0 + eighth)


def lose_room(full: float, fuller: float) -> float:
    """By how much surer it is that there is no room, for each request that runs there."""
    return _LOSE_ROOM * (miss_probability(fuller) - miss_probability(full))
