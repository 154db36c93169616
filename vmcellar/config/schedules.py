"""When a job runs by itself: a cron line, an interval or an RRULE, in a time zone by name."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

from vmcellar.config.section import Section
from vmcellar.config.units import Cron, parse_duration

SHORTEST_SECONDS = 60
"""Prefect looks for runs that are due some times a minute; a VM is held for some seconds."""
LONGEST_SECONDS = 10 * 365 * 86400

_FREQUENCY = re.compile(r"\bFREQ=(?:YEARLY|MONTHLY|WEEKLY|DAILY|HOURLY)(?:;|$)", re.MULTILINE)
_AWARE = re.compile(r"DTSTART(?:;TZID=|:\w+Z)")
_YEARS_TO_COME = 8
"""A day that comes not once in so many years, with a leap year among them, never comes."""


def _interval(value: object) -> int:
    seconds = parse_duration(value)
    if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
        raise ValueError(f"an interval is at least {SHORTEST_SECONDS} s, and at most ten years")
    return seconds


Interval = Annotated[
    int,
    BeforeValidator(_interval),
    PlainSerializer(lambda seconds: f"{seconds}s", when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["6h"]}),
]


class Schedule(Section):
    """Exactly one of `cron`, `interval` and `rrule`. A text alone is a cron line."""

    cron: Cron | None = Field(default=None, description='minute, hour, day, month, weekday, as in "0 2 * * *"')
    interval: Interval | None = Field(default=None, description="as in 6h")
    rrule: str | None = Field(default=None, description="RFC 5545, as in FREQ=WEEKLY;BYDAY=MO,TH;BYHOUR=3;BYMINUTE=0")
    timezone: str = Field(default="", description="as in Europe/Berlin; default this host's")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"cron": value} if isinstance(value, str) else value

    @field_validator("rrule")
    @classmethod
    def _rrule_is_understood(cls, value: str | None) -> str | None:
        if value is not None:
            _check_rrule(value)
        return value

    @field_validator("timezone")
    @classmethod
    def _zone_is_known(cls, value: str) -> str:
        if value:
            try:
                ZoneInfo(value)
            except (ValueError, OSError, KeyError) as error:
                raise ValueError("no such time zone; names are those below /usr/share/zoneinfo") from error
            if value not in available_timezones():
                raise ValueError("no name of a place; write such as Europe/Berlin")
        return value

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if sum(value is not None for value in (self.cron, self.interval, self.rrule)) != 1:
            raise ValueError('a schedule is a cron line ("0 2 * * *"), or exactly one of cron:, interval:, rrule:')
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "examples": ["0 2 * * *"]}, handler(schema)]}

    def __str__(self) -> str:
        """As people read it."""
        what = self.cron or self.rrule or f"every {self.interval} s"
        return f"{what} {self.timezone}".strip()


def _check_rrule(value: str) -> None:
    """ValueError for what is no RRULE, and for one by which nothing would ever run: Prefect's server counts from 2020
    on, over each time in between, so that frequent ones keep it busy for seconds or for ever, for all hosts.
    """
    from dateutil.rrule import rrule, rrulestr  # noqa: PLC0415  (0.1 s that few need)

    words = value.upper()
    zone = UTC if _AWARE.search(words) else None
    if zone is None and re.search(r"UNTIL=\w+Z", words):
        raise ValueError("UNTIL is a local time: write it without the Z")
    today = datetime.now(zone).replace(microsecond=0)
    try:
        found = rrulestr(value, dtstart=today)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not an RRULE of RFC 5545: {error}") from error
    if not isinstance(found, rrule) or not _FREQUENCY.search(words):
        raise ValueError("one RRULE, with FREQ= YEARLY to HOURLY; what is more frequent is an interval: or a cron line")
    if re.search(r"\bINTERVAL=0*(;|$)", words, re.MULTILINE):
        raise ValueError("INTERVAL=0 never ends: give 1 or more, or leave it out")
    if re.search(r"\bCOUNT=", words):
        raise ValueError("COUNT counts from 2020 on: say with UNTIL=YYYYMMDDTHHMMSS when it ends")
    if found.replace(until=today.replace(year=today.year + _YEARS_TO_COME, day=28)).after(today) is None:
        raise ValueError("it never comes")


def _off(value: Any) -> Any:
    return None if value is False or value == "off" else value  # YAML's own word for False is off


class _OrOff:
    """For editors, whose YAML may know `off` as False."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"const": False}, handler(schema)]}


OptionalSchedule = Annotated[Schedule | None, BeforeValidator(_off), _OrOff]
"""A schedule that `off` takes away."""
