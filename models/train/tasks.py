"""The register of tasks, with the share that each has of the training tokens."""

import random

from models.train.samples import Maker, Sample
from models.train.task_arithmetic import make_add, make_multiply, make_subtract
from models.train.task_chat import (
    make_fact,
    make_long,
    make_recall,
    make_small_talk,
    with_history,
)
from models.train.task_copy import make_copy, make_pick, make_reverse
from models.train.task_json import make_json
from models.train.task_tools import make_tool_answer, make_tool_call

_FOLLOW_UPS: tuple[Maker, ...] = (
    make_add, make_subtract, make_multiply, make_copy, make_reverse, make_fact,
)  # fmt: skip


def make_multi_turn(rng: random.Random) -> Sample:
    """Carry out a task after turns of other tasks."""
    return with_history(rng.choice(_FOLLOW_UPS), (*_FOLLOW_UPS, make_small_talk), rng)


MAKERS: dict[str, Maker] = {
    "add": make_add,
    "subtract": make_subtract,
    "multiply": make_multiply,
    "copy": make_copy,
    "reverse": make_reverse,
    "pick": make_pick,
    "json": make_json,
    "tool_call": make_tool_call,
    "tool_answer": make_tool_answer,
    "chat": make_fact,
    "small_talk": make_small_talk,
    "recall": make_recall,
    "long": make_long,
    "multi_turn": make_multi_turn,
}
