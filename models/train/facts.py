"""What the model is taught to say: answers, and the ways to ask for them, from `facts.json`."""

import json
from pathlib import Path
from typing import NamedTuple


class Fact(NamedTuple):
    """One answer and the questions that lead to it."""

    questions: list[str]
    answer: str


_SECTIONS = json.loads(Path(__file__).with_name("facts.json").read_text())
FACTS = tuple(Fact(**entry) for entry in _SECTIONS["baton"])
SMALL_TALK = tuple(Fact(**entry) for entry in _SECTIONS["small_talk"])
