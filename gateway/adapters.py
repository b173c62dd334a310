"""The adapters that this gateway lets requests name, and which of them requests use."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from baton.protos.adapters import AdapterRef
from baton.protos.errors import NotFoundError

# Names that an error about an unknown one lists.
_NUM_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFigures:
    """Of one name: requests that run or wait now, and all there were."""

    name: str
    num_active: int
    num_requests: int


class AdapterTable:
    """Names and the content that each stands for now. Belongs to one event loop.

    A request keeps the content that its name stood for when it came: `leftover` tells of content
    that has left the table since.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._adapters: dict[str, AdapterRef] = {}
        self._in_use: Counter[str] = Counter()
        self._active: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()

    def replace(self, generation: int, adapters: Sequence[AdapterRef]) -> None:
        """The set that requests may name from now on."""
        self.generation = generation
        self._adapters = {ref.name: ref for ref in adapters}
        # Counts of names that are gone for good would pile up.
        for name in self._requests.keys() - self._adapters.keys() - self._active.keys():
            del self._requests[name]

    @property
    def adapters(self) -> Mapping[str, AdapterRef]:
        return self._adapters

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[AdapterRef]:
        """What a name stands for, kept until the block ends. Raises NotFoundError."""
        ref = self._adapters.get(name)
        if ref is None:
            raise NotFoundError(
                f"the adapter {name[:80]!r} was unloaded", param="model", code="model_not_found"
            )
        self._in_use[ref.adapter_id] += 1
        self._active[name] += 1
        self._requests[name] += 1
        try:
            yield ref
        finally:
            _count_down(self._in_use, ref.adapter_id)
            _count_down(self._active, name)

    def leftover(self) -> frozenset[str]:
        """Ids that requests use and no name stands for."""
        named = {ref.adapter_id for ref in self._adapters.values()}
        return frozenset(self._in_use.keys() - named)

    def figures(self) -> list[AdapterFigures]:
        """Of every name that can be used, or still is."""
        names = dict.fromkeys((*self._adapters, *self._active))
        return [
            AdapterFigures(
                name=name, num_active=self._active[name], num_requests=self._requests[name]
            )
            for name in names
        ]

    def some_names(self) -> list[str]:
        """A few, for errors."""
        return list(self._adapters)[:_NUM_SHOWN]


def _count_down(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
