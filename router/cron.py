"""Cron windows: five fields that say when something begins, and how long it lasts."""

from __future__ import annotations

import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from baton.protos.errors import ConfigError

MAX_WINDOW_S = 7 * 86_400.0
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))


@dataclass(frozen=True, slots=True)
class Cron:
    """`minute hour day month weekday`, each `*`, `a`, `a-b`, `a,b` or with `/step`; weekday 0 and 7
    are Sunday. As in Vixie cron, day and weekday together mean either of them.
    """

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    @classmethod
    def parse(cls, text: str) -> Cron:
        """Raises ConfigError that says which field is wrong."""
        parts = text.split()
        if len(parts) != len(_FIELDS):
            raise ConfigError(
                f"start is {text!r}, but must have five fields: minute hour day month weekday, "
                'such as "0 8 * * 1-5"',
                param="start",
            )
        sets = [_parse(part, *known, text) for part, known in zip(parts, _FIELDS, strict=True)]
        weekdays = frozenset(day % 7 for day in sets[4])
        either = parts[2] != "*" and parts[4] != "*"
        return cls(sets[0], sets[1], sets[2], sets[3], weekdays, either)

    def matches(self, moment: datetime) -> bool:
        """Whether it begins in this minute."""
        return (
            moment.minute in self.minutes
            and moment.hour in self.hours
            and moment.month in self.months
            and self._day(moment)
        )

    def began_within(self, moment: datetime, duration_s: float) -> bool:
        """Whether it has begun in the last `duration_s` seconds up to `moment`."""
        start = moment.replace(second=0, microsecond=0)
        into_minute_s = (moment - start).total_seconds()
        minutes = int((duration_s - into_minute_s) // 60) + 1
        if duration_s - into_minute_s <= 60 * (minutes - 1):
            minutes -= 1
        return any(self.matches(start - timedelta(minutes=back)) for back in range(minutes))

    def _day(self, moment: datetime) -> bool:
        day = moment.day in self.days
        weekday = moment.isoweekday() % 7 in self.weekdays
        return day or weekday if self.either_day else day and weekday


def local_time(now_s: float, timezone: str) -> datetime:
    """Seconds since 1970 as wall time there. Raises ConfigError for an unknown timezone."""
    try:
        zone = zoneinfo.ZoneInfo(timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigError(
            f"timezone is {timezone!r}, which is not known here; use a name such as Europe/Berlin "
            "or UTC",
            param="timezone",
        ) from error
    return datetime.fromtimestamp(now_s, UTC).astimezone(zone)


def _parse(part: str, name: str, low: int, high: int, text: str) -> frozenset[int]:
    found: set[int] = set()
    for item in part.split(","):
        span, _, step_text = item.partition("/")
        first, _, last = span.partition("-")
        try:
            step = int(step_text) if "/" in item else 1
            begin = low if span == "*" else int(first)
            end = high if span == "*" or ("/" in item and not last) else int(last or first)
        except ValueError:
            begin, end, step = 1, 0, 1
        if not (low <= begin <= end <= high and step >= 1):
            raise ConfigError(
                f"start is {text!r}, whose {name} is {part!r}, but must be * or numbers from {low} "
                f"to {high}, ranges a-b, lists a,b or steps */n",
                param="start",
            )
        found.update(range(begin, end + 1, step))
    return frozenset(found)
