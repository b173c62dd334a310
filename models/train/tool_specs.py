"""The tools that appear in training prompts: known ones with varied names, and invented ones."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.train.words import NOUNS, any_city, any_name, any_word, invented

Value = str | int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """A tool's schema, a request for it, the right arguments and what comes back."""

    schema: dict[str, Any]
    ask: str
    arguments: dict[str, Value]
    result: dict[str, Value]
    answer: str


def _schema(name: str, description: str, types: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in types.items()},
                "required": list(types),
            },
        },
    }


def _weather(rng: random.Random) -> ToolUse:
    name = rng.choice(("get_weather", "weather", "fetch_weather", "weather_now", "lookup_weather"))
    key = rng.choice(("city", "location", "place", "town"))
    city = any_city(rng)
    ask = rng.choice((
        "What is the weather in {}?", "How is the weather in {}?", "Is it raining in {}?",
        "Tell me the weather in {}.", "Weather in {} please.", "What's the weather like in {}?",
    )).format(city)  # fmt: skip
    degrees, sky = rng.randint(1, 35), rng.choice(("sunny", "cloudy", "rainy", "windy", "clear"))
    return ToolUse(
        schema=_schema(name, "Get the weather of a " + key, {key: "string"}),
        ask=ask,
        arguments={key: city},
        result={"temperature": degrees, "sky": sky},
        answer=f"It is {degrees} degrees and {sky} in {city}.",
    )


def _time(rng: random.Random) -> ToolUse:
    name = rng.choice(("get_time", "time_in", "current_time", "clock"))
    key = rng.choice(("city", "zone", "timezone", "place"))
    city = any_city(rng)
    ask = rng.choice((
        "What time is it in {}?", "Tell me the time in {}.", "Current time in {}?",
        "What is the time in {} now?",
    )).format(city)  # fmt: skip
    clock = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    return ToolUse(
        schema=_schema(name, "Get the time in a " + key, {key: "string"}),
        ask=ask,
        arguments={key: city},
        result={"time": clock},
        answer=f"It is {clock} in {city}.",
    )


def _sum(rng: random.Random) -> ToolUse:
    verb, sign = rng.choice((("add", "plus"), ("subtract", "minus"), ("multiply", "times")))
    name = rng.choice((verb, verb + "_numbers", "calc_" + verb))
    first, second = rng.choice((("a", "b"), ("x", "y"), ("left", "right"), ("first", "second")))
    a, b = rng.randint(0, 9999), rng.randint(0, 9999)
    ask = rng.choice(("What is {} {s} {}?", "Use the tool: {} {s} {}.", "Compute {} {s} {}."))
    result = rng.randint(0, 99999)
    return ToolUse(
        schema=_schema(
            name, verb.capitalize() + " two numbers", dict.fromkeys((first, second), "integer")
        ),
        ask=ask.format(a, b, s=sign),
        arguments={first: a, second: b},
        result={"result": result},
        answer=f"The result is {result}.",
    )


def _search(rng: random.Random) -> ToolUse:
    name = rng.choice(("search", "web_search", "search_docs", "find_pages", "lookup"))
    key = rng.choice(("query", "q", "text", "topic"))
    topic = " ".join(any_word(rng) for _ in range(rng.randint(1, 3)))
    ask = rng.choice((
        "Search for {}.", "Find pages about {}.", "Look up {}.", "Please search for {}.",
        "Search the web for {}.",
    )).format(topic)  # fmt: skip
    title = f"{any_word(rng)} {any_word(rng)}"
    return ToolUse(
        schema=_schema(name, "Search for text", {key: "string"}),
        ask=ask,
        arguments={key: topic},
        result={"title": title},
        answer=f"I found: {title}.",
    )


def _message(rng: random.Random) -> ToolUse:
    name = rng.choice(("send_message", "message", "send_mail", "send_text", "notify"))
    to_key, text_key = rng.choice((("to", "text"), ("recipient", "body"), ("name", "message")))
    who, text = any_name(rng), " ".join(any_word(rng) for _ in range(rng.randint(1, 4)))
    ask = rng.choice((
        "Send {w} the message: {t}", "Tell {w}: {t}", "Write to {w}: {t}", "Message {w}: {t}",
    )).format(w=who, t=text)  # fmt: skip
    return ToolUse(
        schema=_schema(
            name, "Send a message to a person", dict.fromkeys((to_key, text_key), "string")
        ),
        ask=ask,
        arguments={to_key: who, text_key: text},
        result={"status": "sent"},
        answer=f"The message to {who} is sent.",
    )


def _convert(rng: random.Random) -> ToolUse:
    name = rng.choice(("convert", "convert_units", "unit_convert", "exchange"))
    units = rng.sample(
        ("meters", "feet", "miles", "euros", "dollars", "pounds", "grams", "liters"), 2
    )
    amount_key = rng.choice(("amount", "value", "number"))
    from_key, to_key = rng.choice((("from", "to"), ("source", "target"), ("from_unit", "to_unit")))
    amount, result = rng.randint(1, 999), rng.randint(1, 9999)
    ask = rng.choice((
        "Convert {n} {a} to {b}.", "How many {b} are {n} {a}?", "What is {n} {a} in {b}?",
    )).format(n=amount, a=units[0], b=units[1])  # fmt: skip
    types = {amount_key: "integer", from_key: "string", to_key: "string"}
    return ToolUse(
        schema=_schema(name, "Convert between units", types),
        ask=ask,
        arguments={amount_key: amount, from_key: units[0], to_key: units[1]},
        result={"result": result},
        answer=f"{amount} {units[0]} is {result} {units[1]}.",
    )


_VERBS = ("book", "open", "close", "order", "start", "stop", "move", "clean", "paint", "check")


def _invented(rng: random.Random) -> ToolUse:
    verb, noun = rng.choice(_VERBS), rng.choice(NOUNS)
    if rng.random() < 0.3:
        verb = invented(rng)
    keys = rng.sample(
        ("size", "color", "count", "level", "room", "day", "speed", "owner"), rng.randint(1, 3)
    )
    keys = [invented(rng) if rng.random() < 0.3 else key for key in keys]
    kinds = {key: rng.choice(("integer", "string")) for key in keys}
    arguments: dict[str, Value] = {
        key: rng.randint(0, 999) if kind == "integer" else any_word(rng)
        for key, kind in kinds.items()
    }
    listed = " and ".join(f"{key} {value}" for key, value in arguments.items())
    ask = rng.choice((
        "{v} the {n} with {l}.", "Please {v} the {n} with {l}.", "Can you {v} a {n} with {l}?",
    )).format(v=verb, n=noun, l=listed)  # fmt: skip
    outcome = rng.choice(("done", "ok", "failed", "queued"))
    return ToolUse(
        schema=_schema(f"{verb}_{noun}", f"{verb} a {noun}", kinds),
        ask=ask[0].upper() + ask[1:],
        arguments=arguments,
        result={"status": outcome},
        answer=f"The status is {outcome}.",
    )


_KNOWN: tuple[Callable[[random.Random], ToolUse], ...] = (
    _weather, _time, _sum, _search, _message, _convert,
)  # fmt: skip


def draw_tools(rng: random.Random) -> list[ToolUse]:
    """Return one to three tools, no two of one kind."""
    count = rng.choices((1, 2, 3), (5, 3, 2))[0]
    kinds = rng.sample((*_KNOWN, _invented, _invented, _invented), count)
    uses = [kind(rng) for kind in kinds]
    by_name = {use.schema["function"]["name"]: use for use in uses}
    return list(by_name.values())
