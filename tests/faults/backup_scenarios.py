"""init, backup and recover."""

from __future__ import annotations

import os

from tests.crypto.store import CHEAP
from tests.faults.cellar import PASSPHRASE, Cellar
from tests.faults.scenario import nothing, scenario
from tests.faults.steps import Steps, killed_at
from vmcellar.backup import stages
from vmcellar.cli import newrepository
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.errors import PermanentError

HALF = 95
"""A step of a backup by which it has staged packs."""


def _init(cellar: Cellar) -> None:
    keys = [cellar.folder / "private.pub"] if cellar.recipient else []
    path = cellar.folder / "vmcellar.yaml"
    answers = None if path.exists() else (str(cellar.hot), cellar.folder / "passphrase")
    try:
        newrepository.create(path, answers, keys)
    except PermanentError as error:
        if "holds a repository already" not in error.message:
            raise


def _new_keys(cellar: Cellar) -> None:
    cellar.make_folder()
    private = PrivateKey.generate()
    (cellar.folder / "private").write_bytes(private.to_file(PASSPHRASE.encode(), CHEAP))
    (cellar.folder / "private.pub").write_bytes(private.public.to_file())


def _usable(cellar: Cellar) -> None:
    cellar.back_up_and_note("web", 1)
    cellar.check()


def _empty(cellar: Cellar) -> None:
    cellar.make()
    cellar.write("web", 1)


def with_parent(cellar: Cellar) -> None:
    cellar.make()
    cellar.back_up_and_note("db", 3)
    cellar.back_up_and_note("web", 1)
    cellar.write("web", 2)


def _one_disk_with_parent(cellar: Cellar) -> None:
    cellar.make()
    cellar.back_up_and_note("db", 3)
    cellar.write("db", 2)


def _back_up_one_disk(cellar: Cellar) -> None:
    cellar.back_up("db")


def _backed_up_one_disk(cellar: Cellar) -> None:
    cellar.check_backed_up("db")


def _back_up(cellar: Cellar) -> None:
    cellar.back_up("web")


def backed_up(cellar: Cellar) -> None:
    cellar.check_backed_up("web")


def _half_a_backup(cellar: Cellar) -> None:
    """A backup that was killed in its middle, with packs staged and placed; then its VM was shut off."""
    with_parent(cellar)
    pid = os.fork()
    if pid == 0:
        Steps(killed_at(HALF)).install()
        cellar.back_up("web")
        os._exit(0)
    assert os.waitpid(pid, 0)[1], "the backup has fewer steps than that"
    cellar.source.let_go()
    engine = cellar.engine()
    assert engine.run_directories()
    assert engine.staged_runs()
    engine.repository.close()


def _recover(cellar: Cellar) -> None:
    engine = cellar.engine()
    stages.recover(engine)
    engine.repository.close()


def _backup_after_recover(cellar: Cellar) -> None:
    cellar.check()
    cellar.back_up("web")
    cellar.check_backed_up("web")


SCENARIOS = (
    scenario("init", Cellar.make_folder, _init, settled=nothing, finished=_usable),
    scenario("init-recipient", _new_keys, _init, settled=nothing, finished=_usable, recipient=True),
    scenario("backup-full", _empty, _back_up, finished=backed_up),
    scenario("backup-incremental", _one_disk_with_parent, _back_up_one_disk, finished=_backed_up_one_disk),
    scenario("backup-recipient", with_parent, _back_up, finished=backed_up, recipient=True),
    scenario("recover", _half_a_backup, _recover, finished=_backup_after_recover),
)
