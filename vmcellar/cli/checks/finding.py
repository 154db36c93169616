"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `remedy` is a command or a change to make; empty where nothing needs doing.

    With a `note` or a `warning` backups go on; `failed` means that something the configuration asks for cannot work.
    """

    check: str
    status: Status
    detail: str
    remedy: str = ""


def failed(check: str, error: Exception, remedy: str = "") -> Finding:
    """The finding for an error; a vmcellar error brings its own remedy."""
    detail = getattr(error, "message", "") or str(error) or type(error).__name__
    return Finding(check, "failed", detail, getattr(error, "hint", "") or remedy)
