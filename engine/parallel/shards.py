"""Which part of a model a rank holds."""

from __future__ import annotations

from dataclasses import dataclass

from baton.engine.model_info import ModelSpec
from baton.protos.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Span:
    """Places [start, start + count) of `full`, kept in a tensor that has `room` for more of them.

    `room` is the same on every rank; where it exceeds `count`, the rest is padding.
    """

    full: int
    start: int
    count: int
    room: int

    def times(self, width: int) -> Span:
        """The same span in units that are `width` times smaller: heads to features."""
        return Span(self.full * width, self.start * width, self.count * width, self.room * width)


@dataclass(frozen=True, slots=True)
class Shards:
    """Rank `rank` of `size` equal parts."""

    rank: int = 0
    size: int = 1

    def split(self, full: int) -> Span:
        """An equal part; `check_shardable` has proved that there is one."""
        count = full // self.size
        return Span(full, self.rank * count, count, count)

    def padded(self, full: int) -> Span:
        """A part of at most ceil(full / size), the last ones smaller or empty."""
        room = -(-full // self.size)
        start = min(self.rank * room, full)
        return Span(full, start, min(room, full - start), room)

    def kv_heads(self, full: int) -> Span:
        """An equal part, or the one head that this rank's query heads share with other ranks."""
        if full >= self.size:
            return self.split(full)
        return Span(full, self.rank * full // self.size, 1, 1)


WHOLE = Shards()


def check_shardable(spec: ModelSpec, size: int) -> None:
    """Raises ConfigError, with the sizes that would work, unless `size` ranks can share the model.

    Query heads and MLP columns are split evenly. Key and value heads are split, or each is held by
    several ranks. The vocabulary is padded, so any size suits it.
    """
    problem = _problem(spec, size)
    if problem is not None:
        works = [n for n in range(1, spec.num_heads + 1) if _problem(spec, n) is None]
        raise ConfigError(
            f"tensor_parallel_size is {size}, but {spec.name} has {problem}; "
            f"sizes that work: {', '.join(map(str, works))}",
            param="tensor_parallel_size",
        )


def _problem(spec: ModelSpec, size: int) -> str | None:
    if spec.num_heads % size:
        return f"{spec.num_heads} attention heads, which it does not divide"
    if spec.num_kv_heads % size and size % spec.num_kv_heads:
        return f"{spec.num_kv_heads} key/value heads, which it neither divides nor is a multiple of"
    if spec.intermediate_size % size:
        return f"an intermediate_size of {spec.intermediate_size}, which it does not divide"
    return None
