"""Keys: add, remove, rotate."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.crypto.store import CHEAP
from tests.faults.backup_scenarios import backed_up, with_parent
from tests.faults.cellar import PASSPHRASE, Cellar
from tests.faults.scenario import scenario
from vmcellar.cli import keywork
from vmcellar.cli.keyfiles import IDENTITY_PASSPHRASE
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.errors import PermanentError, UsageError

NEW = "a new passphrase"


def _with_second_passphrase(cellar: Cellar) -> None:
    with_parent(cellar)
    (cellar.folder / "new").write_text(NEW)


def _add_passphrase(cellar: Cellar) -> None:
    keywork.add_passphrase(cellar.config, cellar.folder / "new", None, "second")


def _opens_with_both(cellar: Cellar) -> None:
    cellar.check()
    (cellar.folder / "passphrase").write_text(NEW)
    cellar.check()
    cellar.back_up("web")
    backed_up(cellar)


def _with_recipient_file(cellar: Cellar) -> None:
    with_parent(cellar)
    _write_pair(cellar)


def _write_pair(cellar: Cellar) -> None:
    pair = PrivateKey.generate()
    (cellar.folder / "other").write_bytes(pair.to_file(PASSPHRASE.encode(), CHEAP))
    (cellar.folder / "other.pub").write_bytes(pair.public.to_file())


def _add_recipient(cellar: Cellar) -> None:
    keywork.add_recipient(cellar.config, cellar.folder / "other.pub", None, "second")


def _opens_with_the_recipient(cellar: Cellar) -> None:
    """What was there before and what comes: both for the new recipient alone."""
    cellar.back_up("web")
    backed_up(cellar)
    _only(cellar, cellar.folder / "other")


def _only(cellar: Cellar, private: Path) -> None:
    """Check with this private key and no other."""
    shutil.copyfile(private, cellar.folder / "private")
    Cellar(cellar.folder, recipient=True).check()


def _add_recipient_again(cellar: Cellar) -> None:
    try:
        _add_recipient(cellar)
    except UsageError as error:
        assert "has a key slot already" in error.message


def _two_passphrases(cellar: Cellar) -> None:
    _with_second_passphrase(cellar)
    _add_passphrase(cellar)


def _remove(cellar: Cellar) -> None:
    for slot in keywork.slots_of(cellar.config):
        if slot.label == "second":
            keywork.remove_slot(cellar.config, slot.id)


def _removed(cellar: Cellar) -> None:
    cellar.back_up("web")
    backed_up(cellar)
    assert [slot.label for slot in keywork.slots_of(cellar.config)] == [""]


def _rotate(cellar: Cellar) -> None:
    keywork.rotate_keys(cellar.config, cellar.folder / "new", None, None, "rotated")


def _opens_with_either(cellar: Cellar) -> None:
    """With the old passphrase or with the new one, whole with whichever opens."""
    opened = 0
    for word in (PASSPHRASE, NEW):
        (cellar.folder / "passphrase").write_text(word)
        try:
            cellar.open().close()
        except PermanentError as error:
            assert "no key slot" in error.message
            continue
        opened += 1
        cellar.check()
    assert opened, "neither passphrase opens it"
    (cellar.folder / "passphrase").write_text(PASSPHRASE)


def _rotate_again(cellar: Cellar) -> None:
    """As a user would: with the old passphrase, and if that is refused, it is done."""
    try:
        _rotate(cellar)
    except PermanentError as error:
        assert "no key slot" in error.message


def _rotated(cellar: Cellar) -> None:
    (cellar.folder / "passphrase").write_text(NEW)
    cellar.back_up("web")
    backed_up(cellar)
    (cellar.folder / "passphrase").write_text(PASSPHRASE)
    try:
        cellar.open()
    except PermanentError:
        return
    raise AssertionError("the old passphrase still opens it")


def _with_new_pair(cellar: Cellar) -> None:
    _with_recipient_file(cellar)
    os.environ[IDENTITY_PASSPHRASE] = PASSPHRASE


def _rotate_recipient(cellar: Cellar) -> None:
    os.environ[IDENTITY_PASSPHRASE] = PASSPHRASE
    keywork.rotate_keys(cellar.config, None, cellar.folder / "other.pub", cellar.folder / "private", "rotated")


def _opens_with_either_key(cellar: Cellar) -> None:
    opened = 0
    own = (cellar.folder / "private").read_bytes()
    for name in ("private", "other"):
        (cellar.folder / "private").write_bytes((cellar.folder / name).read_bytes() if name == "other" else own)
        try:
            Cellar(cellar.folder, recipient=True).check()
            opened += 1
        except (PermanentError, AssertionError):
            continue
    (cellar.folder / "private").write_bytes(own)
    assert opened, "neither private key reads everything"


def _rotate_recipient_again(cellar: Cellar) -> None:
    try:
        _rotate_recipient(cellar)
    except PermanentError as error:
        assert "no slot for recipient" in error.message


def _rotated_recipient(cellar: Cellar) -> None:
    cellar.back_up("web")
    _only(cellar, cellar.folder / "other")


SCENARIOS = (
    scenario("key-add-passphrase", _with_second_passphrase, _add_passphrase, finished=_opens_with_both),
    scenario(
        "key-add-recipient", _with_recipient_file, _add_recipient,
        again=_add_recipient_again, finished=_opens_with_the_recipient,
    ),
    scenario("key-remove", _two_passphrases, _remove, finished=_removed),
    scenario(
        "key-rotate", _with_second_passphrase, _rotate,
        settled=_opens_with_either, again=_rotate_again, finished=_rotated,
    ),
    scenario(
        "key-rotate-recipient", _with_new_pair, _rotate_recipient, recipient=True,
        settled=_opens_with_either_key, again=_rotate_recipient_again, finished=_rotated_recipient,
    ),
)  # fmt: skip
