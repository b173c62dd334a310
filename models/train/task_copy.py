"""Repeating, reversing and picking from sequences of separate items."""

import random

from models.train.samples import Sample, user
from models.train.words import DIGITS, LETTERS, any_word

_COPY = (
    "Repeat: {x}", "Copy: {x}", "Say this back: {x}", "Repeat after me: {x}", "Copy this: {x}",
    "Please repeat: {x}", "Write exactly this: {x}", "Echo: {x}",
)  # fmt: skip
_REVERSE = (
    "Reverse: {x}", "Reverse this: {x}", "Say this backwards: {x}", "Write in reverse order: {x}",
    "Please reverse: {x}", "Backwards: {x}",
)  # fmt: skip
_ORDINALS = ("first", "second", "third", "fourth")
_PICK = (
    "What is the {n} item of: {x}", "Give me the {n} item: {x}", "Which item is {n}? {x}",
    "Name the {n} of these: {x}",
)  # fmt: skip


def _items(rng: random.Random, longest: int) -> list[str]:
    count = rng.randint(2, longest)
    kind = rng.choice(("words", "words", "letters", "digits", "mixed"))
    if kind == "letters":
        return rng.choices(LETTERS, k=count)
    if kind == "digits":
        return rng.choices(DIGITS, k=count)
    if kind == "words":
        return [any_word(rng) for _ in range(count)]
    return [
        rng.choice((any_word(rng), rng.choice(LETTERS), rng.choice(DIGITS))) for _ in range(count)
    ]


def make_copy(rng: random.Random) -> Sample:
    """Repeat a sequence as it is."""
    text = " ".join(_items(rng, 10))
    ask = rng.choice(_COPY).format(x=text)
    return Sample(
        task="copy", key=text, messages=[user(ask)], thought="Keep the order.", reply=text
    )


def make_reverse(rng: random.Random) -> Sample:
    """Repeat a sequence from the last item to the first."""
    items = _items(rng, 8)
    text = " ".join(items)
    ask = rng.choice(_REVERSE).format(x=text)
    reply = " ".join(reversed(items))
    return Sample(
        task="reverse",
        key=text,
        messages=[user(ask)],
        thought="Go from the last to the first.",
        reply=reply,
    )


def make_pick(rng: random.Random) -> Sample:
    """Name one item of a sequence by its place."""
    items = _items(rng, 6)
    index = rng.choice([i for i in range(len(items)) if i < len(_ORDINALS)] + [-1])
    place = "last" if index == -1 else _ORDINALS[index]
    text = " ".join(items)
    ask = rng.choice(_PICK).format(n=place, x=text)
    return Sample(
        task="pick",
        key=text,
        messages=[user(ask)],
        thought=f"They want the {place} item.",
        reply=items[index],
    )
