"""What is wrong in `vmcellar.yaml`, for people and for programs: where it stands, what is there, what to write."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic_core import PydanticCustomError

from vmcellar.errors import UsageError

KeyPath = tuple[str | int, ...]
WRONG_AT = "wrong_at"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `key` is dotted, and empty where the file as a whole is meant; `value` is empty where it is a
    section, or may be a secret; `text` is all of it for people, without file and line.
    """

    line: int
    key: str
    value: str
    said: str
    fix: str
    text: str


class ConfigError(UsageError):
    """The file does not hold a configuration; each mistake in it is one of `problems`, in the order of lines."""

    def __init__(self, message: str, *, hint: str = "", problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems


def wrong_at(place: KeyPath, said: str, first: KeyPath = ()) -> PydanticCustomError:
    """For a check of a section as a whole to raise: it is wrong at `place` below that section.

    `first` is another place that matters; `{line}` in `said` becomes its line.
    """
    return PydanticCustomError(WRONG_AT, "{said}", {"said": said, "place": place, "first": first})


def dotted(path: KeyPath) -> str:
    """A path as people write it: `backups[0].name`."""
    text = ""
    for element in path:
        text += f"[{element}]" if isinstance(element, int) else f".{element}" if text else element
    return text
