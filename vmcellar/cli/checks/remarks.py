"""What a valid configuration does otherwise than it reads, or leaves open to others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vmcellar.config.model import Config
from vmcellar.config.problems import KeyPath
from vmcellar.repository.left_out import MEANING
from vmcellar.sources.libvirt_uri import other_host


@dataclass(frozen=True, slots=True)
class Remark:
    """A note or a warning about the key at `at`; `fix` is what to do, empty where nothing has to be done."""

    level: Literal["note", "warning"]
    at: KeyPath
    said: str
    fix: str = ""


def remarks(config: Config) -> Iterator[Remark]:
    """In the order of the file's sections as `vmcellar init` writes them."""
    if config.key is not None and config.key.exposed():
        yield Remark(
            "warning", ("key",), f"{config.key.describe()}: others may read it", f"chmod 600 {config.key.file}"
        )
    if host := other_host(config.libvirt.uri):
        remote = config.libvirt.remote
        yield Remark(
            "note",
            ("libvirt", "uri"),
            f"the VMs are those of {host}: disks come over NBD with TLS, with the certificates in "
            f"{remote.certificates}, from ports {remote.ports} there; scratch files lie in its storage pool "
            f"{remote.scratch_pool} (`vmcellar doctor` looks)",
        )
    for number in range(len(config.backups)):
        yield from _of_job(config, number)


def _of_job(config: Config, number: int) -> Iterator[Remark]:
    job, at = config.backups[number], ("backups", number)
    for path in job.excluded_paths():
        said = (
            f"job {job.name}: exclude {path}: a bare path is a note and is backed up, too; "
            f"path:{path} would leave out what its files hold"
        )
        yield Remark("note", (*at, "exclude", job.exclude.index(path)), said)
    for path in job.left_out_paths():
        said = (
            f"job {job.name}: exclude path:{path}: {MEANING}; what lies on LVM, XFS, Btrfs, or where it cannot be told "
            "is kept, and each run's report says so (docs/leaving-out.md)"
        )
        yield Remark("warning", (*at, "exclude", job.exclude.index(f"path:{path}")), said)
    if job.schedule is not None and job.rpo is None and config.notify:
        said = f"job {job.name}: nobody is told when its backups stop coming, only when one fails"
        yield Remark("note", (*at, "name"), said, "give it an rpo:, such as twice the time between its runs")
    if job.mode == "incremental":
        said = f"job {job.name}: mode {job.mode} is done as auto: every point restores without the others"
        yield Remark("note", (*at, "mode"), said)
    if not config.is_hot(job.storage):
        said = f"job {job.name}: its storage is not served by this version, which keeps packs on the tier hot"
        yield Remark("note", (*at, "storage"), said)
