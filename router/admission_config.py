"""What an operator may set about admission. `docs/admission.md` explains each limit."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from baton.protos.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """One tenant's share and limits; None means no limit of its own. Raises ConfigError.

    `weight` is its share of a busy cluster beside the other tenants' weights. `max_running` bounds
    requests that were sent to workers, `max_waiting` those that wait for that. `tokens_per_minute`
    counts prompt and output tokens; a minute's worth may come at once. A request whose first token
    cannot come within `max_ttft_s` is refused.
    """

    name: str
    weight: float = 1.0
    max_running: int | None = None
    max_waiting: int | None = None
    tokens_per_minute: float | None = None
    max_ttft_s: float | None = None

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 64 or not self.name.isprintable():
            raise ConfigError(
                f"name is {self.name!r}, but must be 1 to 64 printable characters", param="name"
            )
        for field in fields(TenantLimits):
            value = getattr(self, field.name)
            if isinstance(value, str) or value is None:
                continue
            if not math.isfinite(value) or value <= 0:
                raise ConfigError(
                    f"{field.name} is {value}, but must be finite and more than 0",
                    param=field.name,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionConfig:
    """Bounds of one gateway's waiting room. Times are seconds. Raises ConfigError.

    A request waits here rather than at a worker that could not begin it within `hold_s`. At most
    `max_waiting` requests with `max_waiting_tokens` prompt tokens wait, none longer than
    `max_wait_s`. Fair shares count tokens: an output token costs as much as `output_token_price`
    prompt tokens (VTC, Sheng et al., OSDI 2024, uses 2), and `expected_output_tokens` are assumed
    of a request until it ends, or what its tenant's requests had on average.
    """

    hold_s: float = 0.25
    max_waiting: int = 2048
    max_waiting_tokens: int = 16_000_000
    max_wait_s: float = 60.0
    output_token_price: float = 2.0
    expected_output_tokens: int = 128

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value <= 0:
                raise ConfigError(
                    f"{field.name} is {value}, but must be finite and more than 0",
                    param=field.name,
                )
