"""Synthetic mixes: classes of requests with length distributions, shared prefixes and bursts."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

from baton.protos.errors import ConfigError
from baton.protos.hashing import HASH_BYTES
from baton.simulator.request import Trace, TraceRequest

# Mooncake's: one hash names this many tokens.
BLOCK_TOKENS: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestClass:
    """One kind of request. Lengths are log-normal (median, sigma) between 1 and the maximum.

    Every prompt begins with one of `num_prefixes` shared prefixes of `prefix_tokens` (drawn evenly;
    it counts toward the prompt, which is at least one token longer). `turns` > 1: the request is a
    conversation whose next prompt is the last one, its answer and new tokens, `think_s` later.
    """

    rate: float
    prompt_tokens: float
    output_tokens: float
    prompt_sigma: float = 0.0
    output_sigma: float = 0.0
    max_prompt_tokens: int = 120_000
    max_output_tokens: int = 8_192
    prefix_tokens: int = 0
    num_prefixes: int = 1
    turns: int = 1
    think_s: float = 20.0
    tenant: str = ""

    def __post_init__(self) -> None:
        for name in ("rate", "prompt_tokens", "output_tokens"):
            _positive(name, getattr(self, name))
        for name in ("max_prompt_tokens", "max_output_tokens", "num_prefixes", "turns"):
            _positive(name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """From `start_s` to `end_s` requests begin `factor` times as often; the rate rises and falls
    evenly over `ramp_s` at either end.
    """

    start_s: float
    end_s: float
    factor: float
    ramp_s: float = 0.0

    def factor_at(self, at_s: float) -> float:
        inside_s = min(at_s - self.start_s, self.end_s - at_s)
        if inside_s < 0:
            return 1.0
        share = min(1.0, inside_s / self.ramp_s) if self.ramp_s > 0 else 1.0
        return 1.0 + share * (self.factor - 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Classes of requests that arrive at random (Poisson) for `duration_s`."""

    duration_s: float
    classes: tuple[RequestClass, ...]
    bursts: tuple[Burst, ...] = ()

    def __post_init__(self) -> None:
        _positive("duration_s", self.duration_s)
        if not self.classes:
            raise ConfigError("a mix needs at least one class", param="classes")

    def factor(self, at_s: float) -> float:
        """How many times the usual rate holds at that moment."""
        found = 1.0
        for burst in self.bursts:
            found *= burst.factor_at(at_s)
        return found


def synthesize(name: str, mix: Mix, seed: int) -> Trace:
    """Draws the requests of a mix; the same seed gives the same ones."""
    maker = _Maker(random.Random(f"{name}/{seed}"))
    drawn: list[TraceRequest] = []
    for request_class in mix.classes:
        prefixes = [
            maker.new_hashes(request_class.prefix_tokens) for _ in range(request_class.num_prefixes)
        ]
        for start_s in _arrivals(mix, request_class.rate, maker.rng):
            drawn += maker.conversation(request_class, maker.rng.choice(prefixes), start_s)
    ordered = sorted(drawn, key=lambda request: (request.arrival_s, request.index))
    if not ordered:
        raise ConfigError(f"mix {name} has no arrivals in {mix.duration_s} s", param="trace")
    start_s = ordered[0].arrival_s
    requests = tuple(
        TraceRequest(
            index,
            request.arrival_s - start_s,
            request.num_prompt_tokens,
            request.num_output_tokens,
            request.block_hashes,
            request.tenant,
        )
        for index, request in enumerate(ordered)
    )
    return Trace(name, BLOCK_TOKENS, requests)


class _Maker:
    """Draws requests and names blocks that nobody else has."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._num_blocks = 0
        self._num_requests = 0

    def new_hashes(self, num_tokens: int) -> tuple[bytes, ...]:
        count = num_tokens // BLOCK_TOKENS
        first = self._num_blocks
        self._num_blocks += count
        return tuple(i.to_bytes(HASH_BYTES, "little") for i in range(first, first + count))

    def conversation(
        self, kind: RequestClass, prefix: tuple[bytes, ...], start_s: float
    ) -> list[TraceRequest]:
        at_s, hashes, length = start_s, prefix, kind.prefix_tokens
        requests = []
        for _ in range(kind.turns):
            length += self._length(kind.prompt_tokens, kind.prompt_sigma, kind.max_prompt_tokens)
            num_output = self._length(kind.output_tokens, kind.output_sigma, kind.max_output_tokens)
            if length > kind.max_prompt_tokens:
                break
            hashes += self.new_hashes((length // BLOCK_TOKENS - len(hashes)) * BLOCK_TOKENS)
            self._num_requests += 1
            requests.append(
                TraceRequest(self._num_requests, at_s, length, num_output, hashes, kind.tenant)
            )
            length += num_output
            at_s += self.rng.expovariate(1 / kind.think_s) if kind.think_s > 0 else 0.0
        return requests

    def _length(self, median: float, sigma: float, most: int) -> int:
        drawn = median * math.exp(self.rng.gauss(0.0, sigma)) if sigma > 0 else median
        return max(1, min(most, round(drawn)))


def _arrivals(mix: Mix, rate: float, rng: random.Random) -> list[float]:
    # Thinning: draws at the highest rate and keeps each with the share that holds then.
    highest = math.prod(max(1.0, burst.factor) for burst in mix.bursts)
    arrivals = []
    at_s = rng.expovariate(rate * highest)
    while at_s < mix.duration_s:
        if rng.random() * highest < mix.factor(at_s):
            arrivals.append(at_s)
        at_s += rng.expovariate(rate * highest)
    return arrivals


def _positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{name} is {value!r}, but must be a number above 0", param=name)
