"""What a simulation is told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Final

from baton.protos.errors import ConfigError
from baton.protos.types import Role
from baton.router.config import RouterConfig
from baton.router.scaling_config import ScalingConfig
from baton.router.times import H100_8B, ModelTimes
from baton.simulator.admission import SimAdmission

# What vLLM 0.26 keeps for KV on an H100 of 80 GB beside an 8B model in bfloat16.
H100_KV_TOKENS: Final = 444_528
MAX_RUNNING: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SimScaling:
    """How the sizes of both pools change: the rule, and their bounds."""

    config: ScalingConfig
    min_prefill: int = 1
    min_decode: int = 1
    max_prefill: int = 64
    max_decode: int = 64

    def bounds(self, role: Role) -> tuple[int, int]:
        if role is Role.PREFILL:
            return self.min_prefill, self.max_prefill
        return self.min_decode, self.max_decode


@dataclass(frozen=True, slots=True, kw_only=True)
class SimConfig:
    """One fleet, one policy, one seed. Seconds and tokens. Raises ConfigError naming the field.

    A request is good when its first token comes within the router's `ttft_slo_s` and the mean time
    between its tokens is within `itl_slo_s`. `kv_capacity_tokens` is one worker's KV pool,
    `max_tokens` what clients ask for at most (routers never know the real length), `overhead_s`
    what a request pays outside of engines, `startup_s` the time from asking for a worker to its
    first request. The defaults are those of an 8B model on an H100 of 80 GB with vLLM 0.26.
    """

    prefill: int
    decode: int
    router: RouterConfig = field(default_factory=RouterConfig)
    times: ModelTimes = H100_8B
    seed: int = 0
    kv_capacity_tokens: int = H100_KV_TOKENS
    max_running: int = MAX_RUNNING
    max_tokens: int = 4096
    overhead_s: float = 0.0
    startup_s: float = 109.0
    gpus_per_worker: int = 1
    # Prompts are started at a prefill worker while fewer steps than this wait in its engine.
    window_steps: int = 2
    # A decode worker that has no memory for a prompt for so long is asked by the next of them.
    reserve_timeout_s: float = 20.0
    # Mean time between failures of one worker; 0: none fails. It is back after `startup_s`.
    mtbf_s: float = 0.0
    # Requests wait in the gateway, or are refused there; None: every request is sent at once.
    admission: SimAdmission | None = None
    # Pools follow their work; None: they stay as large as they begin.
    scaling: SimScaling | None = None

    def __post_init__(self) -> None:
        may_be_zero = {"prefill", "seed", "overhead_s", "startup_s", "mtbf_s"}
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, int | float):
                continue
            enough = value >= 0 if item.name in may_be_zero else value > 0
            if not math.isfinite(value) or not enough:
                bound = "at least 0" if item.name in may_be_zero else "more than 0"
                raise ConfigError(
                    f"{item.name} is {value}, but must be finite and {bound}", param=item.name
                )
