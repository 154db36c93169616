"""`placement:` in the configuration: until which age packs lie on which tier."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, SerializationInfo, WithJsonSchema, model_validator

from vmcellar.config.jobs import TIERS
from vmcellar.config.section import Section
from vmcellar.config.units import parse_duration

REST = "rest"


def _parse_until(value: object) -> int | str:
    return REST if str(value).strip() == REST else parse_duration(value)


def _as_written(value: int | str, info: SerializationInfo) -> int | str:
    return f"{value}s" if info.context and value != REST else value


Until = Annotated[
    int | Literal["rest"],
    BeforeValidator(_parse_until),
    PlainSerializer(_as_written),
    WithJsonSchema({"type": "string", "examples": ["7d", REST]}),
]


class Placement(Section):
    """Until which age of the youngest point that needs it a pack lies on each tier, and on how many tiers at once."""

    hot: Until | None = Field(default=None, description="a time since the youngest point, as in 7d, or rest")
    warm: Until | None = Field(default=None, description="a time since the youngest point, as in 30d, or rest")
    cold: Until | None = Field(default=None, description="usually rest")
    use: bool = Field(default=False, description="a restore makes packs young: their age counts from it")
    copies: int = Field(default=1, ge=1, le=len(TIERS), description="on so many tiers each pack lies")

    @model_validator(mode="after")
    def _ages_rise(self) -> Self:
        named = self.limits()
        if not named or named[-1][1] != REST:
            raise ValueError("the last tier that is named takes the rest, as in {hot: 7d, cold: rest}")
        ages = [until for _, until in named[:-1]]
        if REST in ages or ages != sorted(set(ages), key=int):
            raise ValueError("each tier's time is longer than that of the tier before it, as in {hot: 7d, warm: 30d}")
        return self

    def limits(self) -> list[tuple[str, int | str]]:
        """The tiers that are named, in order, each with its age in seconds or `rest`."""
        return [(name, until) for name in TIERS if (until := getattr(self, name)) is not None]
