"""From the errors of the operating system to the error tree."""

from __future__ import annotations

import errno
import os

from vmcellar.errors import PermanentError, TransientError, VmcellarError
from vmcellar.tiers.base import FullError, NotFoundError

GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_ADVICE = {
    errno.ENOSPC: "free space there or make it larger, then run the backup again",
    errno.EDQUOT: "raise the quota of this user there, then run the backup again",
    errno.EROFS: "mount it writable; a file system that turned read-only by itself may be damaged: see `dmesg`",
    errno.EACCES: "let this user read and write there (chown, chmod), or run vmcellar as its owner",
    errno.EPERM: "let this user read and write there; the file system must also allow hard links",
    errno.EMLINK: "the file system must allow hard links",
}


def translate(error: OSError, what: str) -> VmcellarError:
    """The error of our tree for one of the operating system's; `what` names the object or folder."""
    text = f"{what}: {os.strerror(error.errno) if error.errno else error}"
    if error.errno in GONE:
        return NotFoundError(text, hint="check that the tier's file system is mounted")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FullError(text, hint=_ADVICE[error.errno])
    if error.errno in _ADVICE:
        return PermanentError(text, hint=_ADVICE[error.errno])
    return TransientError(text, hint="see `dmesg` for errors of the device")
