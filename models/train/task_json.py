"""Answers that are one JSON object."""

import json
import random

from models.train.samples import Message, Sample, system, user
from models.train.words import COLORS, JOBS, any_city, any_name, any_word

_SYSTEMS = (
    "Answer only in JSON.", "Reply with JSON and nothing else.", "You answer in JSON.",
    "Your output is one JSON object.", "Respond in JSON format.",
)  # fmt: skip
Value = str | int


def _person(rng: random.Random) -> dict[str, Value]:
    fields: dict[str, Value] = {
        "age": rng.randint(1, 99),
        "city": any_city(rng),
        "job": rng.choice(JOBS),
        "color": rng.choice(COLORS),
    }
    kept = rng.sample(list(fields), rng.randint(1, 3))
    return {"name": any_name(rng)} | {key: fields[key] for key in kept}


_CLAUSES = {
    "age": ("is {}", "is {} years old"),
    "city": ("lives in {}", "is from {}"),
    "job": ("works as a {}", "is a {}"),
    "color": ("likes {}", "likes the color {}"),
}


def _clauses(rng: random.Random, person: dict[str, Value]) -> str:
    texts = [
        rng.choice(_CLAUSES[key]).format(value) for key, value in person.items() if key != "name"
    ]
    return _join(texts)


def _join(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]


def _ask_person(rng: random.Random) -> tuple[list[Message], dict[str, Value]]:
    person = _person(rng)
    name, clauses = person["name"], _clauses(rng, person)
    if rng.random() < 0.4:
        return [system(rng.choice(_SYSTEMS)), user(f"{name} {clauses}.")], person
    keys = list(person)
    if rng.random() < 0.3:
        rng.shuffle(keys)
    listed = _join(keys)
    ask = rng.choice((
        f"Give me JSON with {listed} for {name} who {clauses}.",
        f"Make a JSON object with {listed}: {name} {clauses}.",
        f"Write JSON with {listed}. {name} {clauses}.",
        f"{name} {clauses}. Return JSON with {listed}.",
    ))  # fmt: skip
    return [user(ask)], {key: person[key] for key in keys}


def _ask_pairs(rng: random.Random) -> tuple[list[Message], dict[str, Value]]:
    count = rng.randint(1, 4)
    pairs: dict[str, Value] = {
        any_word(rng): rng.randint(0, 999) if rng.random() < 0.5 else any_word(rng)
        for _ in range(count)
    }
    listed = _join([f"{key} is {value}" for key, value in pairs.items()])
    if rng.random() < 0.3:
        return [system(rng.choice(_SYSTEMS)), user(f"{listed}.")], pairs
    ask = rng.choice((f"Make JSON: {listed}.", f"As JSON: {listed}.", f"Write as JSON: {listed}."))
    return [user(ask)], pairs


def make_json(rng: random.Random) -> Sample:
    """Turn a sentence into a JSON object, asked for by the user or by a system prompt."""
    messages, value = _ask_person(rng) if rng.random() < 0.65 else _ask_pairs(rng)
    reply = json.dumps(value)
    return Sample(
        task="json",
        key=reply,
        messages=messages,
        thought="They want JSON with " + _join(list(value)) + ".",
        reply=reply,
    )
