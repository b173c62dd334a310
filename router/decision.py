"""What a plan is asked for and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from baton.protos.types import Member


class Chain(NamedTuple):
    """Hashes of a prompt's full blocks of one size, in tokens."""

    block_size: int
    hashes: Sequence[bytes]


class Kept(NamedTuple):
    """Leading tokens of a prompt that a worker has in any place, and those of them that it has in
    its pool or host memory.
    """

    num_tokens: int
    num_near: int


NOT_KEPT: Final = Kept(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRequest:
    """What the router knows of a request. `block_hashes` are those of the prompt's full blocks of
    `block_size`, the decode workers' size; `other_chains` those of sizes that only prefill workers
    have.

    `exclude` names workers that already failed this request. `stick_to` names the decode worker
    that holds the prompt (n > 1); when it cannot be used the request is planned as any other.
    `last_worker` served this session's last request: it is preferred, not required.
    `sequence` counts this router's requests, for policies that take turns.
    """

    request_id: str
    num_prompt_tokens: int
    block_hashes: Sequence[bytes] = ()
    block_size: int = 16
    other_chains: tuple[Chain, ...] = ()
    max_tokens: int = 16
    prompt_logprobs: bool = False
    exclude: frozenset[str] = frozenset()
    stick_to: str | None = None
    last_worker: str | None = None
    adapter: str = ""
    sequence: int = 0

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The prompt in blocks of every size; a worker holds blocks of one."""
        return (Chain(self.block_size, self.block_hashes), *self.other_chains)


class Candidate(NamedTuple):
    """One option and its price in seconds, `cost_s`, which is the sum of the others.

    `prefill` is empty for a local one. `ttft_s` is the predicted time to first token, `slo_s` what
    is added for its objective (less than nothing far beyond it), `queue_s` what prompts that come
    later lose to this one. `interference_s` is what running requests lose to
    a local prefill, `decode_s` what this request and those beside it lose to each other while
    decoding, `room_s` the wait for KV blocks, `move_s` KV that arrives after the first token,
    `extra_s` an adapter to load less what is granted to an idle prefill worker or to the session's
    last worker.
    """

    decode: str
    prefill: str
    ttft_s: float
    slo_s: float
    queue_s: float
    interference_s: float
    decode_s: float
    room_s: float
    move_s: float
    extra_s: float
    cost_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a request goes and why. `prefill` is empty for local, otherwise best first.

    Of the prompt, `num_cached_tokens` are held where it is decoded, and `num_new_tokens` are to be
    computed where it is computed: where `pull_from` is not None, by the first prefill worker after
    it fetched what that worker has cached. `candidates` are the cheapest options that were priced,
    the chosen one among them.
    """

    decode: Member
    prefill: tuple[Member, ...]
    reason: str
    ttft_s: float = 0.0
    num_cached_tokens: int = 0
    num_new_tokens: int = 0
    candidates: tuple[Candidate, ...] = ()
    pull_from: Member | None = None

    def header(self) -> str:
        """Compact text for `x-baton-plan`; values never hold spaces."""
        prefill = self.prefill[0].worker_id if self.prefill else "local"
        pull = "" if self.pull_from is None else f" pull_from={self.pull_from.worker_id}"
        return (
            f"decode={self.decode.worker_id} prefill={prefill} reason={self.reason} "
            f"ttft_ms={self.ttft_s * 1e3:.1f} cached_tokens={self.num_cached_tokens}"
            f"{pull}"
        )

    def explain(self) -> str:
        """Every option that is remembered, cheapest first, one a line."""
        lines = [self.header()]
        for option in sorted(self.candidates, key=lambda candidate: candidate.cost_s):
            prices = " ".join(
                f"{name.removesuffix('_s')}={1e3 * value:.2f}ms"
                for name, value in zip(option._fields[2:], option[2:], strict=True)
            )
            lines.append(f"  decode={option.decode} prefill={option.prefill or 'local'} {prices}")
        return "\n".join(lines)
