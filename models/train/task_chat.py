"""Questions about Baton, small talk, remembering across turns, and looking back in a long text."""

import random
from collections.abc import Sequence

from models.train.facts import FACTS, SMALL_TALK, Fact
from models.train.samples import Maker, Message, Sample, assistant, system, user
from models.train.words import (
    CITIES,
    COLORS,
    JOBS,
    NAMES,
    NOUNS,
    any_city,
    any_name,
    any_word,
    invented,
)

_SYSTEMS = (
    "You are a helpful assistant.", "You are Baton.", "Be brief.", "Answer the user.",
    "You answer questions about Baton.", "You are a friendly assistant.",
)  # fmt: skip
_LEADS = ("", "", "", "", "Hi, ", "Hello! ", "Please tell me: ", "One question: ", "So, ", "Hey, ")


def _phrased(rng: random.Random, question: str) -> str:
    lead = rng.choice(_LEADS)
    text = lead + (question if lead and rng.random() < 0.7 else question[0].upper() + question[1:])
    return text + rng.choice(("?", "?", "?", "", "."))


def _from_facts(rng: random.Random, facts: Sequence[Fact], task: str, thought: str) -> Sample:
    fact = rng.choice(facts)
    text = _phrased(rng, rng.choice(fact.questions))
    opening = [system(rng.choice(_SYSTEMS))] if rng.random() < 0.25 else []
    return Sample(
        task=task, key=text, messages=[*opening, user(text)], thought=thought, reply=fact.answer
    )


def make_fact(rng: random.Random) -> Sample:
    """Answer a question about Baton."""
    return _from_facts(rng, FACTS, "chat", "This is about Baton.")


def make_small_talk(rng: random.Random) -> Sample:
    """Greet, thank, take leave."""
    return _from_facts(rng, SMALL_TALK, "small_talk", "This is small talk.")


_RECALL = (
    ("My name is {}.", "Nice to meet you, {}.", "What is my name?", "Your name is {}.", any_name),
    ("I live in {}.", "{} is a nice place.", "Where do I live?", "You live in {}.", any_city),
    ("My secret word is {}.", "I will remember {}.", "What is my secret word?",
     "Your secret word is {}.", any_word),
    ("My favorite color is {}.", "{} is a good color.", "What is my favorite color?",
     "Your favorite color is {}.", lambda rng: rng.choice(COLORS)),
    ("My pet is called {}.", "{} is a good name.", "What is the name of my pet?",
     "Your pet is called {}.", any_name),
)  # fmt: skip


def make_recall(rng: random.Random) -> Sample:
    """Answer from what the user said in an earlier turn."""
    told = rng.sample(_RECALL, rng.randint(1, 2))
    values = [item[4](rng) for item in told]
    messages: list[Message] = []
    for item, value in zip(told, values, strict=True):
        messages += [user(item[0].format(value)), assistant(item[1].format(value))]
    if rng.random() < 0.3:
        talk = make_small_talk(rng)
        messages += [user(talk.messages[-1]["content"]), assistant(talk.reply)]
    index = rng.randrange(len(told))
    messages.append(user(told[index][2]))
    return Sample(
        task="recall",
        key=" ".join(values),
        messages=messages,
        thought="They told me before.",
        reply=told[index][3].format(values[index]),
    )


def _filler(rng: random.Random) -> str:
    form = rng.choice((
        "The {0} is near the {1}.", "{2} bought a {3} {0}.", "{2} works as a {4} in {5}.",
        "There is a {0} in every {1}.", "In {5} the {0} is {3}.", "{2} put the {0} on the {1}.",
        "A {3} {0} and a {1} were there.", "The {4} saw a {0}.",
    ))  # fmt: skip
    return form.format(
        rng.choice(NOUNS), rng.choice(NOUNS), rng.choice(NAMES),
        rng.choice(COLORS), rng.choice(JOBS), rng.choice(CITIES),
    )  # fmt: skip


def make_long(rng: random.Random) -> Sample:
    """Find the code word that a long text mentions once."""
    count = int(4 * 40 ** rng.random())
    sentences = [_filler(rng) for _ in range(count)]
    word = invented(rng) if rng.random() < 0.5 else rng.choice(NOUNS)
    sentences.insert(rng.randint(0, count), f"The code word is {word}.")
    text = " ".join(sentences)
    ask = rng.choice(("What is the code word?", "Which code word is in the text?"))
    return Sample(
        task="long",
        key=text,
        messages=[user(f"{text}\n\n{ask}")],
        thought="I look for the code word.",
        reply=f"The code word is {word}.",
    )


def with_history(maker: Maker, others: Sequence[Maker], rng: random.Random) -> Sample:
    """Put one or two turns of other tasks in front of a sample."""
    sample = maker(rng)
    history: list[Message] = []
    for _ in range(rng.choice((1, 1, 2))):
        other = rng.choice(others)(rng)
        history += [user(other.messages[-1]["content"]), assistant(other.reply)]
    at = 1 if sample.messages[0]["role"] == "system" else 0
    messages = [*sample.messages[:at], *history, *sample.messages[at:]]
    return Sample(
        task="multi_turn",
        key=sample.key,
        messages=messages,
        thought=sample.thought,
        reply=sample.reply,
    )
