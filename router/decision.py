"""What a plan is asked for and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from baton.protos.types import Member


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRequest:
    """What the router knows of a request. `block_hashes` are those of the prompt's full blocks.

    `exclude` names workers that already failed this request. `stick_to` names the decode worker
    that holds the prompt (n > 1); when it cannot be used the request is planned as any other.
    `sequence` counts this router's requests, for policies that take turns.
    """

    request_id: str
    num_prompt_tokens: int
    block_hashes: Sequence[bytes] = ()
    block_size: int = 16
    max_tokens: int = 16
    prompt_logprobs: bool = False
    exclude: frozenset[str] = frozenset()
    stick_to: str | None = None
    sequence: int = 0


class Candidate(NamedTuple):
    """One option and its price in seconds: cost = ttft + interference + decode - preference.

    `prefill` is empty for a local one. `interference_s` is what running requests lose to a local
    prefill, `decode_s` what this request and those beside it lose to each other while decoding,
    `preference_s` the margin granted to an idle prefill worker.
    """

    decode: str
    prefill: str
    ttft_s: float
    interference_s: float
    decode_s: float
    preference_s: float
    cost_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a request goes and why. `prefill` is empty for local, otherwise best first."""

    decode: Member
    prefill: tuple[Member, ...]
    reason: str
    ttft_s: float = 0.0
    num_cached_tokens: int = 0
    candidates: tuple[Candidate, ...] = ()

    def header(self) -> str:
        """Compact text for `x-baton-plan`; values never hold spaces."""
        prefill = self.prefill[0].worker_id if self.prefill else "local"
        return (
            f"decode={self.decode.worker_id} prefill={prefill} reason={self.reason} "
            f"ttft_ms={self.ttft_s * 1e3:.1f} cached_tokens={self.num_cached_tokens}"
        )

    def explain(self) -> str:
        """Every option that was priced, cheapest first, one a line."""
        lines = [self.header()]
        for option in sorted(self.candidates, key=lambda candidate: candidate.cost_s):
            lines.append(
                f"  decode={option.decode} prefill={option.prefill or 'local'} "
                f"cost={option.cost_s * 1e3:.2f}ms ttft={option.ttft_s * 1e3:.2f}ms "
                f"interference={option.interference_s * 1e3:.2f}ms "
                f"decode={option.decode_s * 1e3:.2f}ms preference={option.preference_s * 1e3:.2f}ms"
            )
        return "\n".join(lines)
