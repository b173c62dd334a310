"""What the board of adapters, workers and gateways tell each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from baton.protos.adapters import AdapterRef
from baton.protos.errors import BatonError


class Mark(NamedTuple):
    """Which orders somebody has: `version` counts the changes within one life of the board."""

    epoch: str
    version: int


# Of nobody's orders.
NO_MARK: Final = Mark("", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOrders:
    """What gateways may name (`adapters`, generation `generation`) and workers are to hold
    (`wanted`: those, what is being loaded, and what is still used). `base` names the configuration
    that the set began with.
    """

    mark: Mark
    base: str
    generation: int
    adapters: tuple[AdapterRef, ...]
    wanted: tuple[AdapterRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailure:
    """A worker could not load an adapter, in the words of the error tree."""

    worker_id: str
    adapter_id: str
    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """What a worker has done: all that the orders `mark` want, but for `failures`.

    A worker that is not `ready` takes no requests yet, and nobody waits for it.
    """

    worker_id: str
    incarnation: str
    ready: bool
    mark: Mark = NO_MARK
    failures: tuple[LoadFailure, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayReport:
    """What a gateway lets requests name: the set of `generation`. `leftover` are the ids that are
    not in it and still used by requests.
    """

    incarnation: str
    mark: Mark = NO_MARK
    generation: int = 0
    leftover: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterState:
    """What outlives the board: the set by name, and what was in it and may still be used."""

    base: str = ""
    generation: int = 0
    adapters: Mapping[str, AdapterRef] = field(default_factory=dict)
    draining: tuple[AdapterRef, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AdapterState:
        return cls(
            base=values["base"],
            generation=values["generation"],
            adapters={name: AdapterRef(**ref) for name, ref in values["adapters"].items()},
            draining=tuple(AdapterRef(**ref) for ref in values["draining"]),
        )

    def with_set(self, adapters: Mapping[str, AdapterRef], **changes: Any) -> AdapterState:
        """The next generation: `adapters` is the set, and what left it drains."""
        kept = {ref.adapter_id for ref in adapters.values()}
        before = {ref.adapter_id: ref for ref in (*self.draining, *self.adapters.values())}
        left = tuple(ref for adapter_id, ref in before.items() if adapter_id not in kept)
        generation = self.generation + 1
        return dataclasses.replace(
            self, adapters=dict(adapters), draining=left, generation=generation, **changes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One load or unload. `generation` is that of the set with it, None until it is decided;
    `done` when every gateway has that set, or never will because of `failure`.
    """

    number: int
    ref: AdapterRef
    generation: int | None = None
    failure: LoadFailure | None = None
    done: bool = False


def failure_of(error: BatonError, worker_id: str, adapter_id: str) -> LoadFailure:
    """A worker's error as it is reported."""
    return LoadFailure(
        worker_id=worker_id,
        adapter_id=adapter_id,
        code=error.default_code,
        message=error.message,
        param=error.param,
    )
