"""Word lists, and invented words so that a model must copy rather than recall."""

import random


def _listed(text: str) -> list[str]:
    return text.split()


NOUNS = _listed(
    "river stone kite lamp apple bread cloud table chair window garden forest mountain ocean "
    "island bridge castle tower market street bottle basket button candle carpet clock coin "
    "copper cotton desert diamond dragon drum eagle engine feather field fire fish flag flower "
    "fox frog glass gold grape hammer harbor hat hill honey horse house ice iron jacket jar key "
    "king ladder lake leaf lemon letter lion maple marble meadow milk mirror moon needle nest "
    "night oak olive onion orange owl paper pearl pencil piano pillow pine planet plum pocket "
    "pond potato queen rabbit rain ring road robin rocket roof rope rose sail salt sand scarf "
    "school seed shell ship shoe silver snow song spoon spring star stove sugar sun table tea "
    "tiger tomato train tree valley violin wagon wall water wheel whale wheat wind wing winter "
    "wolf wood wool yarn zebra"
)
NAMES = _listed(
    "Anna Ben Carla David Emma Felix Grace Hugo Iris Jonas Karin Liam Maria Nora Oscar Paula "
    "Quinn Rosa Sam Tina Ursula Victor Wendy Xavier Yara Zoe Ahmed Bianca Chen Diego Elena Farid "
    "Hana Ivan Julia Kofi Lena Marco Nina Omar Priya Ravi Sofia Tom Vera"
)
CITIES = _listed(
    "Paris Oslo Rome Berlin Madrid Tokyo Lima Cairo Delhi Vienna Dublin Prague Lisbon Athens "
    "Boston Denver Sydney Nairobi Seoul Toronto Geneva Hamburg Zurich Milan Kyoto Austin Quito"
)
JOBS = _listed("baker doctor teacher pilot farmer nurse painter singer lawyer driver writer cook")
COLORS = _listed("red blue green yellow black white orange purple brown pink gray")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"

_ONSETS = _listed("b c d f g h j k l m n p r s t v w z br ch dr gl kr pl sh st th tr")
_VOWELS = _listed("a e i o u ai ea ou")
_CODAS = ["", "", "", "n", "r", "s", "l", "m", "t", "k"]


def invented(rng: random.Random) -> str:
    """Return a pronounceable word that is in no list."""
    parts = [
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((1, 2, 2, 3)))
    ]
    return "".join(parts)


def any_word(rng: random.Random) -> str:
    """Return a listed noun, or at times an invented word."""
    return invented(rng) if rng.random() < 0.3 else rng.choice(NOUNS)


def any_name(rng: random.Random) -> str:
    """Return a listed first name, or at times an invented one."""
    return invented(rng).capitalize() if rng.random() < 0.3 else rng.choice(NAMES)


def any_city(rng: random.Random) -> str:
    """Return a listed city, or at times an invented one."""
    return invented(rng).capitalize() if rng.random() < 0.3 else rng.choice(CITIES)
