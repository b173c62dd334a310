"""One training or test example, and the rule that decides which examples are held out."""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

HELD_OUT_ONE_IN = 20

Message = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A conversation and the one reply that is to be learned.

    `key` names the content (the operands, the items, the question); samples with one key
    are all in the training set or all held out.
    """

    task: str
    key: str
    messages: list[Message]
    thought: str
    reply: str
    tools: list[dict[str, Any]] = field(default_factory=list)


Maker = Callable[[random.Random], Sample]


def is_held_out(key: str) -> bool:
    """Say whether the content named by `key` is kept out of the training set."""
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


def draw(maker: Maker, rng: random.Random, *, held_out: bool) -> Sample:
    """Make samples until one falls on the wanted side of the split."""
    while True:
        sample = maker(rng)
        if is_held_out(sample.key) == held_out:
            return sample


def user(text: str) -> Message:
    """Return a user message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """Return an assistant message."""
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    """Return a system message."""
    return {"role": "system", "content": text}
