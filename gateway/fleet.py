"""This gateway's side of the cluster: links to workers, plans, and requests that outlive a worker."""

from __future__ import annotations

import random
from dataclasses import dataclass

from baton.gateway.fleet_config import Directory, FleetConfig, StaticDirectory
from baton.gateway.fleet_generation import Generation, TokenChunk
from baton.protos.clock import Clock
from baton.protos.types import GenerateRequest
from baton.router.config import RouterConfig
from baton.router.view import WorkerView

__all__ = [
    "Directory",
    "Fleet",
    "FleetConfig",
    "Generation",
    "ModelFacts",
    "StaticDirectory",
    "TokenChunk",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What every worker of the fleet agrees on, from their hellos; `max_model_len` is the least."""

    model: str
    model_digest: str
    block_size: int
    max_model_len: int
    vocab_size: int


class Fleet:
    """Plans, submits, streams and replays; `docs/interfaces.md` is the contract."""

    def __init__(
        self,
        directory: Directory,
        router: RouterConfig,
        *,
        gateway_id: str,
        clock: Clock | None = None,
        config: FleetConfig | None = None,
        rng: random.Random | None = None,
    ) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    async def wait_ready(self, timeout_s: float) -> None:
        raise NotImplementedError

    def generate(
        self,
        request: GenerateRequest,
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
        stick_to: str | None = None,
    ) -> Generation:
        raise NotImplementedError

    def workers(self) -> list[WorkerView]:
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        raise NotImplementedError

    @property
    def model(self) -> ModelFacts:
        raise NotImplementedError
