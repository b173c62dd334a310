"""What an operator may set about routing. `docs/router.md` explains each price."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from baton.protos.errors import ConfigError

POLICY_NAMES = (
    "cost",
    "threshold",
    "isl_bounding",
    "isl_or_load",
    "splitwise",
    "always_remote",
    "always_local",
    "round_robin",
    "least_loaded",
    "power_of_two",
    "prefix_aware",
)
_MAY_BE_ZERO = frozenset(
    {
        "itl_weight",
        "expected_arrivals",
        "remote_margin_s",
        "min_remote_tokens",
        "adapter_load_s",
        "affinity_s",
        "max_prefill_queue",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """Policy, objectives and prices. Raises ConfigError that names the field."""

    policy: str = "cost"
    # What a good answer is: time to first token, and mean time between tokens.
    ttft_slo_s: float = 2.0
    itl_slo_s: float = 0.1
    # Output tokens assumed where max_tokens allows more: nobody knows the real number.
    expected_output_tokens: int = 256
    # Price of one second that one running request waits for another one's prefill.
    itl_weight: float = 0.2
    # Decodes assumed to be running beside a local prefill on top of those already known.
    expected_arrivals: float = 1.0
    # How much slower an idle prefill worker may be than the decode worker and still be preferred.
    remote_margin_s: float = 0.025
    # A decode worker that holds all of a prompt but fewer tokens than this computes them itself.
    min_remote_tokens: int = 16
    # Price of an adapter that is not resident, and of leaving the session's last worker.
    adapter_load_s: float = 0.25
    affinity_s: float = 0.002
    # A load report older than this is not believed.
    stale_after_s: float = 5.0
    # Prefill workers named in a plan: the first is the choice, the others are for its failure.
    max_prefill_targets: int = 3
    # `threshold`: remote for more uncached tokens than this, while fewer prompts wait than that.
    max_local_prefill_tokens: int = 1000
    max_prefill_queue: int = 2
    # `isl_bounding` and `isl_or_load`: local for fewer uncached tokens and a smaller share than
    # these; or where the prefill worker has more than this waiting.
    isl_tokens: int = 2048
    isl_ratio: float = 0.7
    busy_prefill_tokens: int = 16_384
    # `splitwise`: tokens that may wait in a prefill worker before a decode worker does it all.
    max_pending_prompt_tokens: int = 8192

    def __post_init__(self) -> None:
        if self.policy not in POLICY_NAMES:
            raise ConfigError(
                f"policy is {self.policy!r}, but must be one of {', '.join(POLICY_NAMES)}",
                param="policy",
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str):
                continue
            low_enough = value >= 0 if field.name in _MAY_BE_ZERO else value > 0
            if not math.isfinite(value) or not low_enough:
                bound = "at least 0" if field.name in _MAY_BE_ZERO else "more than 0"
                raise ConfigError(
                    f"{field.name} is {value}, but must be finite and {bound}", param=field.name
                )
