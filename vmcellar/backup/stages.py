"""The stages of a backup, one function each; a Prefect task calls exactly one.

Each is idempotent: its hand-over lies in the run directory, written by rename after everything that it names is in
place, and a second call returns that hand-over when what it names is still there and whole. So a stage can be
retried alone, and a run that died goes on where it stopped. Stages of different segments may run in different
threads of one process; one process at a time works on a VM (`engine.vm_lock`).
"""

from __future__ import annotations

from vmcellar.backup import compress as compressing
from vmcellar.backup import export as exporting
from vmcellar.backup import place as placing
from vmcellar.backup import verify as verifying
from vmcellar.backup.commit import commit
from vmcellar.backup.recover import abandon, give_up, let_go, let_vm_go, recover
from vmcellar.backup.release import release
from vmcellar.backup.retries import counted
from vmcellar.backup.snapshot import snapshot

__all__ = [
    "abandon",
    "commit",
    "compress",
    "export",
    "give_up",
    "let_go",
    "let_vm_go",
    "place",
    "recover",
    "release",
    "snapshot",
    "verify",
]

export = counted("export", exporting.export)
compress = counted("compress", compressing.compress)
place = counted("place", placing.place)
verify = counted("verify", verifying.verify)
