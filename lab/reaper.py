"""Run a daemon and collect every process that it leaves behind, as the first process of a machine should.

libvirt waits up to 40 s for a QEMU that it ended to disappear. In containers, process 1 is often a shell or a service
that collects orphans late or never; with this program between them, orphans come here. It ends with its last
descendant. Source: prctl(2), PR_SET_CHILD_SUBREAPER. Only the standard library, run by file name.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Start `command`, then wait for it and for all that its end leaves to this process."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    subprocess.Popen(command)  # collected below, with the rest
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
