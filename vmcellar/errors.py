"""The one tree of errors: transient, permanent, integrity, cancelled, usage.

Callers decide by class, never by text. Every message names the VM, disk, pack or key it is about; `hint` says what
to do or type next. Exit codes are those of the command line: 1 failed, 2 bad use, 130 stopped by the user (as a
shell does).
"""

from __future__ import annotations


class VmcellarError(Exception):
    """Base of all errors that vmcellar raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        """Keep `hint` across processes; Exception's own pickling drops keyword arguments."""
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(cls: type[VmcellarError], message: str, hint: str) -> VmcellarError:
    return cls(message, hint=hint)


class TransientError(VmcellarError):
    """May pass by itself (busy domain, lost connection, throttled tier): worth a retry with back-off."""


class PermanentError(VmcellarError):
    """No retry can mend it (no space, wrong key, no such domain): fails at once."""


class IntegrityError(VmcellarError):
    """Stored or read bytes are not what they must be. Never retried into success, never ignored."""


class CancelledError(VmcellarError):
    """The user, or a window that closed, stopped the work; everything held has been let go."""

    exit_code = 130


class UsageError(VmcellarError):
    """The command line or the configuration is wrong."""

    exit_code = 2
