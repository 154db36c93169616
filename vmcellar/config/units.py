"""Sizes, rates, times and windows as people write them (`512MiB`, `100MiB/s`, `30d`, `22:00-06:00`).

Each is a pydantic type: text or a plain number in, an exact number out. Sizes are bytes, rates bytes per second, times
seconds. Suffixes are IEC 80000-13 (KiB = 1024) and SI (KB = 1000).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, SerializationInfo, WithJsonSchema

_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_NUMBER = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)")
_WINDOW = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)-([01]?\d|2[0-3]):([0-5]\d)")
_CRON_LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_DAYS_MOST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_CRON_NAMES = ("jan feb mar apr may jun jul aug sep oct nov dec", "sun mon tue wed thu fri sat")
_CRON_ITEM = re.compile(r"(?:\*|([a-z0-9]+)(?:-([a-z0-9]+))?)(?:/([1-9]\d*))?")


def parse_size(value: object) -> int:
    """Bytes of `512MiB`, `1.5 GB` or `1048576`; ValueError says what is accepted."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value
    number, unit = _split(value)
    if number is None or unit.lower() not in _SIZE_UNITS:
        raise ValueError("a size is a number with KiB, MiB, GiB, TiB (or KB, MB, GB, TB), as in 512MiB")
    return round(number * _SIZE_UNITS[unit.lower()])


def parse_rate(value: object) -> int:
    """Bytes per second of `100MiB/s`."""
    text = str(value).strip()
    if not text.endswith("/s"):
        raise ValueError("a rate is a size per second, as in 100MiB/s")
    rate = parse_size(text.removesuffix("/s"))
    if rate <= 0:
        raise ValueError("a rate must be above zero; leave the key out for no limit")
    return rate


def parse_duration(value: object) -> int:
    """Seconds of `90s`, `15m`, `6h`, `30d`, `8w` or `1y` (365 days)."""
    number, unit = _split(value)
    if number is None or unit not in _TIME_UNITS or number == 0:
        raise ValueError("a time is a number with s, m, h, d, w or y, as in 30d")
    return round(number * _TIME_UNITS[unit])


@dataclass(frozen=True, slots=True)
class Window:
    """A daily window in local time, minutes after midnight; it runs over midnight when `end` is not after `start`."""

    start: int
    end: int

    def holds(self, minute: int) -> bool:
        """Whether this minute of the day lies in it."""
        return (minute - self.start) % 1440 < ((self.end - self.start) % 1440 or 1440)

    def __str__(self) -> str:
        """As the configuration has it."""
        return "-".join(f"{minutes // 60:02}:{minutes % 60:02}" for minutes in (self.start, self.end))


def parse_window(value: object) -> Window:
    """The window of `22:00-06:00`."""
    if isinstance(value, Window):
        return value
    match = _WINDOW.fullmatch(str(value).strip())
    if match is None:
        raise ValueError("a window is two local times of day, as in 22:00-06:00")
    hours, minutes, end_hours, end_minutes = (int(part) for part in match.groups())
    return Window(hours * 60 + minutes, end_hours * 60 + end_minutes)


def parse_cron(value: object) -> str:
    """A cron line of five fields (minute, hour, day, month, weekday), checked field by field; as crontab(5) has it."""
    text = str(value).strip()
    fields = text.lower().split()
    if len(fields) != len(_CRON_LIMITS):
        raise ValueError('a schedule has five fields: minute, hour, day, month, weekday, as in "0 2 * * *"')
    for field, limits in zip(fields, _CRON_LIMITS, strict=True):
        for item in field.split(","):
            _check_cron_item(item, limits)
    if fields[4] == "*" and not _comes(fields[2], fields[3]):
        raise ValueError("this day never comes, as 30 February")
    return text


def minutes_of_day(cron: str) -> set[int]:
    """The minutes after midnight at which a cron line may be due, whatever the day."""
    minutes, hours = (
        {number for item in field.split(",") for number in _numbers(item, *limits)}
        for field, limits in zip(cron.split()[:2], _CRON_LIMITS[:2], strict=True)
    )
    return {60 * hour + minute for hour in hours for minute in minutes}


def _comes(day: str, month: str) -> bool:
    """Whether there is a day of these fields in any year."""
    days, months = (
        {number for item in field.split(",") for number in _numbers(item, *limits)}
        for field, limits in ((day, _CRON_LIMITS[2]), (month, _CRON_LIMITS[3]))
    )
    return any(min(days) <= _DAYS_MOST[number - 1] for number in months)


def _numbers(item: str, first: int, last: int) -> Iterable[int]:
    """What a part of a cron line's field stands for; a range may run over the field's end."""
    match = _CRON_ITEM.fullmatch(item)
    begin, end, step = match.groups() if match else (None, None, None)
    low = _number(begin) if begin else first
    high = _number(end) if end else last if begin is None or step else low
    if low > high:
        return [*range(low, last + 1), *range(first, high + 1)]  # with any step: programs differ in how they go on
    return range(low, high + 1, int(step or 1))


def _number(text: str) -> int:
    """Of a month by its name, too; a weekday's is only told from others."""
    names = " ".join(_CRON_NAMES).split()
    return int(text) if text.isdigit() else names.index(text) + 1


def _check_cron_item(item: str, limits: tuple[int, int]) -> None:
    match = _CRON_ITEM.fullmatch(item)
    if match is None:
        raise ValueError(f'"{item}" is no part of a cron line, such as 5, 1-5, */15 or mon')
    for part in match.groups()[:2]:
        if part is not None and not _cron_number_fits(part, limits):
            raise ValueError(f'"{part}" is outside {limits[0]}-{limits[1]}')
    if match[2] is not None and _number(match[1]) == _number(match[2]):  # Prefect takes it for all there are
        raise ValueError(f'"{item}" is one time: write {match[1]}')


def _cron_number_fits(part: str, limits: tuple[int, int]) -> bool:
    if part.isdigit():
        return limits[0] <= int(part) <= limits[1]
    months, days = _CRON_NAMES
    return (limits[1] == 12 and part in months.split()) or (limits[1] == 7 and part in days.split())


def _split(value: object) -> tuple[float | None, str]:
    match = _NUMBER.fullmatch(str(value).strip())
    return (float(match[1]), match[2]) if match else (None, "")


_SIZE_SCHEMA = {"type": ["string", "integer"], "examples": ["512MiB", "1GiB"], "title": "size"}
_RATE_SCHEMA = {"type": "string", "pattern": r"^[0-9.]+ *[A-Za-z]*/s$", "examples": ["100MiB/s"], "title": "rate"}
_TIME_SCHEMA = {"type": "string", "pattern": r"^[0-9.]+ *[smhdwy]$", "examples": ["30d", "6h"], "title": "time"}
_WINDOW_SCHEMA = {
    "type": "string",
    "pattern": r"^\d?\d:\d\d-\d?\d:\d\d$",
    "examples": ["22:00-06:00"],
    "title": "window",
}
_CRON_SCHEMA = {"type": "string", "examples": ["0 2 * * *"], "title": "cron schedule"}


def as_written(unit: str) -> PlainSerializer:
    """Gives a value with its unit where the whole file is shown, so that it can be read again; else as it is."""

    def shown(value: object, info: SerializationInfo) -> object:
        return f"{value}{unit}" if info.context else value

    return PlainSerializer(shown)


Size = Annotated[int, BeforeValidator(parse_size), WithJsonSchema(_SIZE_SCHEMA)]
Rate = Annotated[int, BeforeValidator(parse_rate), as_written("B/s"), WithJsonSchema(_RATE_SCHEMA)]
Duration = Annotated[int, BeforeValidator(parse_duration), as_written("s"), WithJsonSchema(_TIME_SCHEMA)]
DailyWindow = Annotated[Window, BeforeValidator(parse_window), as_written(""), WithJsonSchema(_WINDOW_SCHEMA)]
Cron = Annotated[str, BeforeValidator(parse_cron), WithJsonSchema(_CRON_SCHEMA)]
