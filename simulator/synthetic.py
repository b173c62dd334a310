"""Synthetic mixes: classes of requests with length distributions, shared prefixes and bursts."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final

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

    def __post_init__(self) -> None:
        for name in ("rate", "prompt_tokens", "output_tokens"):
            _positive(name, getattr(self, name))
        for name in ("max_prompt_tokens", "max_output_tokens", "num_prefixes", "turns"):
            _positive(name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """From `start_s` to `end_s` requests begin `factor` times as often."""

    start_s: float
    end_s: float
    factor: float


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
            if burst.start_s <= at_s < burst.end_s:
                found *= burst.factor
        return found


_CHAT = RequestClass(
    rate=4.0,
    prompt_tokens=400,
    prompt_sigma=0.9,
    output_tokens=220,
    output_sigma=0.8,
    prefix_tokens=1024,
    num_prefixes=4,
    turns=4,
)
_AGENT = RequestClass(
    rate=0.6,
    prompt_tokens=3_000,
    prompt_sigma=0.7,
    output_tokens=150,
    output_sigma=0.7,
    prefix_tokens=6_144,
    num_prefixes=150,
    turns=6,
    think_s=4.0,
)
_DOCUMENT = RequestClass(
    rate=1.2, prompt_tokens=16_000, prompt_sigma=0.6, output_tokens=200, output_sigma=0.6
)
_GENERATE = RequestClass(
    rate=6.0, prompt_tokens=300, prompt_sigma=0.6, output_tokens=1_000, output_sigma=0.5
)

MIXES: Final[Mapping[str, Mix]] = MappingProxyType(
    {
        "chat": Mix(duration_s=900.0, classes=(_CHAT,)),
        "agents": Mix(duration_s=900.0, classes=(_AGENT,)),
        "documents": Mix(duration_s=900.0, classes=(_DOCUMENT,)),
        "generate": Mix(duration_s=900.0, classes=(_GENERATE,)),
        "mixed": Mix(
            duration_s=900.0,
            classes=(
                RequestClass(
                    rate=3.0,
                    prompt_tokens=600,
                    prompt_sigma=1.0,
                    output_tokens=300,
                    output_sigma=0.8,
                ),
                RequestClass(
                    rate=1.0,
                    prompt_tokens=12_000,
                    prompt_sigma=0.8,
                    output_tokens=200,
                    output_sigma=0.8,
                ),
                _AGENT,
            ),
        ),
        # A quiet hour with one quarter of it at four times the load.
        "burst": Mix(
            duration_s=3600.0,
            classes=(
                RequestClass(
                    rate=2.5,
                    prompt_tokens=3_000,
                    prompt_sigma=0.8,
                    output_tokens=250,
                    output_sigma=0.7,
                ),
            ),
            bursts=(Burst(start_s=1500.0, end_s=2400.0, factor=4.0),),
        ),
    }
)


def mix_from_json(value: Mapping[str, Any], where: str) -> Mix:
    """`{"duration_s": ..., "classes": [{...}], "bursts": [{...}]}` with the fields of Mix.

    Raises ConfigError that names an unknown or wrong field.
    """
    _known(value, Mix, where)
    try:
        return Mix(
            duration_s=value.get("duration_s", 600.0),
            classes=tuple(
                RequestClass(**_known(item, RequestClass, f"{where} classes"))
                for item in value.get("classes", ())
            ),
            bursts=tuple(
                Burst(**_known(item, Burst, f"{where} bursts")) for item in value.get("bursts", ())
            ),
        )
    except TypeError as error:
        raise ConfigError(f"{where}: {error}", param="trace") from None


def synthesize(name: str, mix: Mix, seed: int) -> Trace:
    """Draws the requests of a mix; the same seed gives the same ones."""
    maker = _Maker(random.Random(f"{name}/{seed}"))
    drawn: list[TraceRequest] = []
    for request_class in mix.classes:
        prefixes = [
            maker.new_hashes(request_class.prefix_tokens)
            for _ in range(request_class.num_prefixes)
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
            num_output = self._length(
                kind.output_tokens, kind.output_sigma, kind.max_output_tokens
            )
            if length > kind.max_prompt_tokens:
                break
            hashes += self.new_hashes((length // BLOCK_TOKENS - len(hashes)) * BLOCK_TOKENS)
            self._num_requests += 1
            requests.append(TraceRequest(self._num_requests, at_s, length, num_output, hashes))
            length += num_output
            at_s += self.rng.expovariate(1 / kind.think_s) if kind.think_s > 0 else 0.0
        return requests

    def _length(self, median: float, sigma: float, most: int) -> int:
        drawn = median * math.exp(self.rng.gauss(0.0, sigma)) if sigma > 0 else median
        return max(1, min(most, round(drawn)))


def _arrivals(mix: Mix, rate: float, rng: random.Random) -> list[float]:
    # Thinning: draws at the highest rate and keeps each with the share that holds then.
    highest = max([1.0, *(mix.factor(burst.start_s) for burst in mix.bursts)])
    arrivals = []
    at_s = rng.expovariate(rate * highest)
    while at_s < mix.duration_s:
        if rng.random() * highest < mix.factor(at_s):
            arrivals.append(at_s)
        at_s += rng.expovariate(rate * highest)
    return arrivals


def _known(value: Any, kind: type, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: must be a JSON object", param="trace")
    names = [field.name for field in fields(kind)]
    for name in value:
        if name not in names:
            raise ConfigError(
                f"{where}: {name!r} is unknown; {kind.__name__} has {', '.join(names)}",
                param="trace",
            )
    return value


def _positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{name} is {value!r}, but must be a number above 0", param=name)
