"""Define a restored VM in libvirt: new name, UUID and MAC addresses, the restored images, nothing shared with the old.

The checkpoint lineage is not carried over: the new VM's images have no bitmaps, so its first backup is a full one.
"""

from __future__ import annotations

import os
import pwd
import shutil
import tarfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from vmcellar.errors import IntegrityError, PermanentError, UsageError
from vmcellar.restore.domain_xml import KEPT, Networks, RestoredFiles, rewrite_domain
from vmcellar.sources.domain_files import BOOT_FILES
from vmcellar.sources.libvirt_connection import Connection

QEMU_USERS = ("libvirt-qemu", "qemu")
"""The account that system VMs run under: Debian's and Fedora's names."""

TPM_STATE = Path("/var/lib/libvirt/swtpm")
"""Where libvirt keeps the state of emulated TPMs, in a folder named by the VM's UUID."""


@dataclass(frozen=True, slots=True)
class DefinedDomain:
    """A VM that now exists in libvirt, shut off. `dropped` says in words what of the old VM it does not have."""

    name: str
    uuid: str
    dropped: tuple[str, ...]


def check_name_free(connection: Connection, name: str) -> None:
    """PermanentError when libvirt has a VM `name`, UsageError when it lets none be called so; to be asked before a long
    restore, too.
    """
    if not name or set(name) & set("/\n"):
        raise UsageError(f"{name!r} is no name of a VM", hint="libvirt takes none with / or a line break")
    if connection.find(name) is not None:
        raise PermanentError(
            f"a VM {name} exists already", hint="choose another name for --define; nothing was changed"
        )


def define_domain(
    connection: Connection,
    xml: str,
    name: str,
    files: RestoredFiles,
    tpm: Path | None = None,
    networks: Networks = KEPT,
    identity: str | None = None,
) -> DefinedDomain:
    """Define `xml` anew as VM `name` on the restored `files`; `tpm` is the artifact tpm.tar, `identity` its new UUID.

    PermanentError when the name is taken, when the hypervisor's account cannot reach the images, or when libvirt
    refuses; then nothing is left of the VM and the restored files stay.
    """
    check_name_free(connection, name)
    new_uuid = identity or str(uuid.uuid4())
    rewritten = rewrite_domain(xml, name, new_uuid, files, networks)
    if _is_system(connection):
        _give_to_hypervisor(files)
    folder = TPM_STATE / new_uuid
    try:
        if tpm is not None and _is_system(connection):
            shutil.rmtree(folder, ignore_errors=True)  # of a try with the same identity that was killed
            place_tpm_state(tpm, folder)
        connection.define(rewritten.xml, name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return DefinedDomain(name, new_uuid, rewritten.dropped)


def _is_system(connection: Connection) -> bool:
    """Whether VMs run under an account of their own rather than ours."""
    return os.geteuid() == 0 and connection.uri.split("?", maxsplit=1)[0].endswith("/system")


def place_tpm_state(archive: Path, folder: Path) -> None:
    """Unpack into a new folder, which libvirt gives to swtpm's account when the VM starts."""
    folder.mkdir(mode=0o711, parents=True)
    with tarfile.open(archive) as tar:
        for entry in tar:
            path = folder / entry.name
            content = tar.extractfile(entry)
            if content is None or not path.resolve().is_relative_to(folder.resolve()):
                raise IntegrityError(f"{archive}: {entry.name} is no file that TPM state consists of")
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(content.read())
            path.chmod(0o600)


def _give_to_hypervisor(files: RestoredFiles) -> None:
    """Make all files the hypervisor's, so that they can be used also where libvirt does not change owners at start."""
    account = hypervisor_account()
    if account is None:
        return
    _check_reachable(files.folder, account)
    boot = [path for name, path in files.boot.items() if name in BOOT_FILES]
    for path in (*files.images.values(), *boot):
        shutil.chown(path, account.pw_uid, account.pw_gid)


def hypervisor_account() -> pwd.struct_passwd | None:
    """The account that VMs of the system run under; None where there is none."""
    for user in QEMU_USERS:
        try:
            return pwd.getpwnam(user)
        except KeyError:
            continue
    return None


def _check_reachable(folder: Path, account: pwd.struct_passwd) -> None:
    groups = set(os.getgrouplist(account.pw_name, account.pw_gid))
    for parent in (folder, *folder.parents):
        if not _may_enter(parent.stat(), account.pw_uid, groups):
            raise PermanentError(
                f"{account.pw_name} cannot reach the images in {folder}: no access to {parent}",
                hint=f"chmod o+x {parent}, or restore to a folder under /var/lib/libvirt/images",
            )


def _may_enter(status: os.stat_result, uid: int, groups: set[int]) -> bool:
    if status.st_uid == uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid in groups:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)
