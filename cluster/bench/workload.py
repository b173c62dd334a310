"""What load to offer: how many requests, when, and with which prompts. Everything follows
from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from baton.protos.errors import ConfigError

MAX_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A number of tokens, drawn evenly from [low, high]. Raises ConfigError."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high <= MAX_TOKENS:
            raise ConfigError(
                f"a length is {self.low}:{self.high}, but must be 1 <= LOW <= HIGH <= {MAX_TOKENS}"
            )

    @classmethod
    def parse(cls, text: str) -> Span:
        """Reads `128` or `64:256`."""
        low, _, high = text.partition(":")
        try:
            return cls(low=int(low), high=int(high or low))
        except ValueError as error:
            raise ConfigError(
                f"a length is {text!r}, but must be a number or LOW:HIGH, such as 128 or 64:256"
            ) from error

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The load. `request_rate` requests a second arrive at random (Poisson); None: as fast as
    possible.

    At most `concurrency` requests are under way; later arrivals wait in the client, which the
    report counts. It ends after `num_requests` or `duration_s`, whichever is given. `shared_prefix`
    is the share of a prompt's tokens that all prompts begin with. Raises ConfigError.
    """

    input_len: Span
    output_len: Span
    num_requests: int | None = None
    duration_s: float | None = None
    request_rate: float | None = None
    concurrency: int = 64
    shared_prefix: float = 0.0
    temperature: float = 0.0
    timeout_s: float = 600.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.num_requests is None) == (self.duration_s is None):
            raise ConfigError("give one of --num-requests and --duration, not both")
        if not 0.0 <= self.shared_prefix <= 1.0:
            raise ConfigError(f"--shared-prefix is {self.shared_prefix}, but must be in [0, 1]")

    def arrivals(self) -> Iterator[float]:
        """Seconds from the start at which requests arrive, ascending, without end or
        `num_requests` long.
        """
        rng, at_s, count = random.Random(self.seed), 0.0, 0
        while self.num_requests is None or count < self.num_requests:
            if self.duration_s is not None and at_s >= self.duration_s:
                return
            yield at_s
            count += 1
            at_s += rng.expovariate(self.request_rate) if self.request_rate else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request to send. `prompt` is token ids, or text for a server that has no /tokenize."""

    prompt: list[int] | str
    output_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What prompts are made of: a server's token ids, or words where it tells none."""

    token_ids: tuple[int, ...] = ()
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.token_ids and not self.words:
            raise ConfigError("a prompt needs at least one token or word to be made of")

    @property
    def exact(self) -> bool:
        """Whether prompts have exactly the tokens that were asked for."""
        return bool(self.token_ids)

    def prompt(self, choices: Sequence[int]) -> list[int] | str:
        """The prompt of which `choices` are indices into this vocabulary."""
        if self.token_ids:
            return [self.token_ids[i] for i in choices]
        return " ".join(self.words[i] for i in choices)


class JobMaker:
    """Makes the prompts of a workload, in order."""

    def __init__(self, workload: Workload, vocabulary: Vocabulary) -> None:
        self._workload = workload
        self._vocabulary = vocabulary
        self._indices = range(len(vocabulary.token_ids or vocabulary.words))
        self._rng = random.Random(workload.seed + 1)
        length = round(workload.input_len.high * workload.shared_prefix)
        self._prefix = random.Random(workload.seed + 2).choices(self._indices, k=length)

    def next(self) -> Job:
        length = self._workload.input_len.draw(self._rng)
        shared = self._prefix[: round(length * self._workload.shared_prefix)]
        own = self._rng.choices(self._indices, k=length - len(shared))
        output_len = self._workload.output_len.draw(self._rng)
        return Job(prompt=self._vocabulary.prompt([*shared, *own]), output_len=output_len)
