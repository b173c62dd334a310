"""Addition, subtraction and small products, with the columns worked out as the thought."""

import random

from models.train.samples import Sample, user

_ASK = {
    "+": (
        "What is {a} + {b}?", "{a} + {b} = ?", "{a} + {b}", "Add {a} and {b}.",
        "Compute {a} + {b}.", "What is {a} plus {b}?", "Calculate {a}+{b}.",
        "How much is {a} + {b}?", "What is the sum of {a} and {b}?", "Please add {a} to {b}.",
    ),
    "-": (
        "What is {a} - {b}?", "{a} - {b} = ?", "{a} - {b}", "Subtract {b} from {a}.",
        "Compute {a} - {b}.", "What is {a} minus {b}?", "Calculate {a}-{b}.",
        "How much is {a} - {b}?", "Take {b} away from {a}.",
    ),
    "*": (
        "What is {a} * {b}?", "{a} * {b} = ?", "{a} * {b}", "Multiply {a} by {b}.",
        "Compute {a} * {b}.", "What is {a} times {b}?", "Calculate {a}*{b}.",
        "How much is {a} x {b}?", "What is the product of {a} and {b}?",
    ),
}  # fmt: skip


def _number(rng: random.Random, weights: tuple[int, ...]) -> int:
    num_digits = rng.choices(range(1, len(weights) + 1), weights)[0]
    return rng.randrange(10 ** (num_digits - 1) if num_digits > 1 else 0, 10**num_digits)


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    width = max(len(str(a)), len(str(b)))
    pairs = zip(str(a).zfill(width), str(b).zfill(width), strict=True)
    return [(int(x), int(y)) for x, y in pairs][::-1]


def add_thought(a: int, b: int) -> str:
    """Work out a + b column by column from the right."""
    steps, carry = [], 0
    columns = _columns(a, b)
    for i, (x, y) in enumerate(columns):
        total = x + y + carry
        step = f"{x}+{y}+{carry}={total}" if carry else f"{x}+{y}={total}"
        carry = total // 10
        if carry and i + 1 < len(columns):
            step += f", carry {carry}"
        steps.append(step)
    return "; ".join(steps)


def subtract_thought(a: int, b: int) -> str:
    """Work out a - b column by column from the right, for a >= b."""
    steps, borrow = [], 0
    for x, y in _columns(a, b):
        has_to_borrow = x - borrow < y
        top = x + 10 if has_to_borrow else x
        middle = f"{top}-{borrow}-{y}" if borrow else f"{top}-{y}"
        step = f"{middle}={top - borrow - y}"
        borrow = int(has_to_borrow)
        steps.append(step + (", borrow 1" if borrow else ""))
    return "; ".join(steps)


def multiply_thought(a: int, b: int) -> str:
    """Work out a times the one-digit b column by column from the right."""
    steps, carry = [], 0
    digits = [int(d) for d in str(a)][::-1]
    for i, x in enumerate(digits):
        total = x * b + carry
        step = f"{x}*{b}+{carry}={total}" if carry else f"{x}*{b}={total}"
        carry = total // 10
        if carry and i + 1 < len(digits):
            step += f", carry {carry}"
        steps.append(step)
    return "; ".join(steps)


def _sample(rng: random.Random, op: str, a: int, b: int, thought: str, result: int) -> Sample:
    # Both orders of a commutative pair share a key, so neither order leaks the other.
    first, second = (a, b) if op == "-" else (min(a, b), max(a, b))
    text = rng.choice(_ASK[op]).format(a=a, b=b)
    return Sample(
        task={"+": "add", "-": "subtract", "*": "multiply"}[op],
        key=f"{first}{op}{second}",
        messages=[user(text)],
        thought=thought,
        reply=f"{a} {op} {b} = {result}",
    )


def make_add(rng: random.Random) -> Sample:
    """Add two numbers of one to three digits."""
    a, b = _number(rng, (2, 4, 7)), _number(rng, (2, 4, 7))
    return _sample(rng, "+", a, b, add_thought(a, b), a + b)


def make_subtract(rng: random.Random) -> Sample:
    """Subtract a number of up to three digits from one that is not smaller."""
    b, a = sorted((_number(rng, (2, 4, 7)), _number(rng, (2, 4, 7))))
    return _sample(rng, "-", a, b, subtract_thought(a, b), a - b)


def make_multiply(rng: random.Random) -> Sample:
    """Multiply a number of one or two digits by one of one digit."""
    a, b = _number(rng, (1, 3)), rng.randrange(10)
    return _sample(rng, "*", a, b, multiply_thought(a, b), a * b)
