"""What an operator may set about routing. `docs/router.md` explains each price."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from baton.protos.errors import ConfigError

POLICY_NAMES = ("cost", "always_remote", "always_local", "round_robin")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """Policy, priors and prices. A rate that a worker reports replaces the prior for that worker.

    The priors are those of an 8B model on one H100 (`prefill_tokens_per_s`, `decode_step_s`) and of
    a 200 Gb/s network; they matter only until the first reports. Raises ConfigError that names the
    field.
    """

    policy: str = "cost"
    prefill_tokens_per_s: float = 30_000.0
    decode_step_s: float = 0.0065
    # Share of a lone request's step that every further running request adds to it.
    decode_step_growth: float = 0.008
    # Output tokens assumed where max_tokens allows more: nobody knows the real number.
    expected_output_tokens: int = 128
    kv_bytes_per_token: int = 131_072
    transfer_bytes_per_s: float = 25e9
    # Tokens of the last chunk, whose push nothing overlaps.
    transfer_chunk_tokens: int = 512
    # Decode worker to prefill worker and back: request, reservation, notification.
    handshake_s: float = 0.003
    # Price of one second that one running request waits for another one's prefill.
    itl_weight: float = 1.0
    # Decodes assumed to be running beside a local prefill on top of those already known.
    expected_arrivals: float = 1.0
    # How much slower an idle prefill worker may be than the decode worker and still be preferred.
    remote_margin_s: float = 0.010
    # A decode worker that holds all of a prompt but fewer tokens than this computes them itself.
    min_remote_tokens: int = 16
    # Added, in proportion to what is missing, where a decode worker lacks blocks for the prompt.
    no_room_s: float = 1.0
    # A load report older than this is not believed.
    stale_after_s: float = 5.0
    # Prefill workers named in a plan: the first is the choice, the others are for its failure.
    max_prefill_targets: int = 3

    def __post_init__(self) -> None:
        if self.policy not in POLICY_NAMES:
            raise ConfigError(
                f"policy is {self.policy!r}, but must be one of {', '.join(POLICY_NAMES)}",
                param="policy",
            )
        may_be_zero = {
            "decode_step_growth",
            "handshake_s",
            "itl_weight",
            "expected_arrivals",
            "remote_margin_s",
            "min_remote_tokens",
            "no_room_s",
        }
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str):
                continue
            low_enough = value >= 0 if field.name in may_be_zero else value > 0
            if not math.isfinite(value) or not low_enough:
                bound = "at least 0" if field.name in may_be_zero else "more than 0"
                raise ConfigError(
                    f"{field.name} is {value}, but must be finite and {bound}", param=field.name
                )
