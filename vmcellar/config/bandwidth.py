"""How fast: one rate, or rates by time of day."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, model_serializer, model_validator
from pydantic_core import CoreSchema

from vmcellar.config.section import Section
from vmcellar.config.units import Rate, Window, parse_window

OTHERWISE = "otherwise"


class Timed(Section):
    """A rate that holds within a daily window of local time."""

    window: Annotated[Window, BeforeValidator(parse_window)]
    rate: Rate


class Bandwidth(Section):
    """Bytes per second: `100MiB/s`, or `{"08:00-18:00": 20MiB/s, otherwise: 200MiB/s}`; without `otherwise`, no limit
    outside the windows. The first window that fits holds.
    """

    timed: tuple[Timed, ...] = ()
    otherwise: Rate | None = Field(default=None)

    @model_validator(mode="before")
    @classmethod
    def _from_words(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {OTHERWISE: value}
        if isinstance(value, Mapping) and "timed" not in value:
            timed = [{"window": window, "rate": rate} for window, rate in value.items() if window != OTHERWISE]
            return {"timed": timed, OTHERWISE: value.get(OTHERWISE)}
        return value

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.timed and self.otherwise is None:
            raise ValueError('a bandwidth is a rate (100MiB/s), or rates by time of day ("08:00-18:00": 20MiB/s)')
        return self

    @model_serializer
    def _as_written(self) -> dict[str, str]:
        rates = {str(each.window): f"{each.rate}B/s" for each in self.timed}
        return rates | ({} if self.otherwise is None else {OTHERWISE: f"{self.otherwise}B/s"})

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        del schema, handler
        rate = {"type": "string", "pattern": r"^[0-9.]+ *[A-Za-z]*/s$", "examples": ["100MiB/s"]}
        return {"anyOf": [rate, {"type": "object", "additionalProperties": rate}]}
