"""Prove that a point restores: every chunk decoded, the disks restored, held against their maps, file systems checked.

What is found is evidence for or against the point, never an exception: the caller writes it. The images lie in a
scratch folder and are removed again; what a killed process leaves is removed by the next proof.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import vmcellar
from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.folders import make_passable
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository import layout, scrub
from vmcellar.repository.evidence import Check, DiskProof, Evidence
from vmcellar.restore.compare import Compared, compare_image
from vmcellar.restore.file_systems import check_file_systems
from vmcellar.restore.plan import make_plan
from vmcellar.restore.report import RestoreReport, RestoreTarget
from vmcellar.restore.restore import DOMAIN_XML, restore_point
from vmcellar.restore.thaw import refuse_archived

if TYPE_CHECKING:
    from vmcellar.repository.points import DiskRecord, RestorePoint
    from vmcellar.repository.repository import Repository

FOLDER = "proofs"
_FINDINGS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ProofOrder:
    """`scratch`: where images may lie for a while. `rpo` is the point's age if it is the newest verified one of its
    VM, `rpo_limit` what the policy allows; seconds. `stale`: what a comparison with the running VM found, by disk.
    """

    scratch: Path
    rpo: float | None = None
    rpo_limit: float | None = None
    stale: tuple[str, ...] | None = None


def prove_point(
    repository: Repository,
    point: RestorePoint,
    order: ProofOrder,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> Evidence:
    """Prove one point; the evidence is given, not written.

    PermanentError or TransientError when this host cannot do it (no space, a tier that does not answer), ArchivedError
    when packs must be thawed first: that says nothing about the point, nor does a prune that drops it (PermanentError).
    CancelledError when stopped.
    """
    with repository.reading(f"prove {point.vm}"):
        repository.check_kept(point)
        return _Proof(repository, point, order, progress, cancel or CancelToken()).run()


def unreadable(repository: Repository, point_id: str, problem: str) -> Evidence:
    """The evidence about a point whose own record is damaged, swapped or forged."""
    check = Check("record", "a signed record of this point", problem, ok=False)
    return _evidence(repository, point_id, "", (check,), {}, damaged=1)


class _Proof:
    """One proof. One thread."""

    def __init__(
        self,
        repository: Repository,
        point: RestorePoint,
        order: ProofOrder,
        progress: ProgressSink,
        cancel: CancelToken,
    ) -> None:
        self._repository = repository
        self._point = point
        self._order = order
        self._progress = progress
        self._cancel = cancel
        self._seconds: dict[str, float] = {}
        self._checks: list[Check] = []

    def run(self) -> Evidence:
        refuse_archived(self._repository, make_plan(self._repository, self._point, (), True, self._cancel))
        damaged = self._decode()
        missing = self._missing()
        with _folder(self._order.scratch) as folder:
            disks = tuple(self._disk(disk, folder / disk.target, damaged) for disk in self._point.disks)
        self._stale()
        return _evidence(
            self._repository, self._point.id, self._point.vm, tuple(self._checks), self._seconds,
            disks=disks, missing=missing, damaged=damaged, rpo=self._order.rpo, rpo_limit=self._order.rpo_limit,
        )  # fmt: skip

    def _decode(self) -> int:
        """Decode and check all that the point needs; how many objects are damaged or missing."""
        with self._phase("decode"):
            report = self._scrub()
            found = [each for each in report.findings if each.ranges]  # others are damage that this point does not need
            if found:  # a tier that did not answer for a moment is no damage: what counts is found twice
                again = {(each.kind, each.name) for each in self._scrub().findings}
                found = [each for each in found if (each.kind, each.name) in again]
                self._repository.tier.get(layout.CONFIG_KEY)  # raises if it does not answer now
        words = "; ".join(f"{each.kind} {each.name}: {each.problem}" for each in found[:_FINDINGS_SHOWN])
        self._add("chunks", "all decode to their ids", words or f"{report.objects} objects do", ok=not found)
        return len(found)

    def _scrub(self) -> scrub.ScrubReport:
        return scrub.verify_point(
            self._repository, self._point, deep=True, progress=self._progress, cancel=self._cancel
        )

    def _missing(self) -> tuple[str, ...]:
        """The disks of the VM that the point should hold and does not."""
        excused = {each.target for each in self._point.uncovered if each.expected}
        wanted = set(self._domain_disks()) | {each.target for each in self._point.uncovered}
        missing = tuple(sorted(wanted - excused - {disk.target for disk in self._point.disks}))
        held = f"{len(self._point.disks)} disks" + (f", without {', '.join(missing)}" if missing else "")
        self._add("disks covered", "every disk of the VM", held, ok=bool(self._point.disks) and not missing)
        return missing

    def _domain_disks(self) -> Iterator[str]:
        artifact = self._point.artifact(DOMAIN_XML)
        if artifact is None:
            return
        try:
            domain = ET.fromstring(self._repository.artifact(artifact))  # noqa: S314  (its signature was checked)
        except (IntegrityError, PermanentError, ET.ParseError):
            return  # the decoding has named it
        for disk in domain.iterfind("devices/disk"):
            target = disk.find("target")
            removable = disk.get("device", "disk") in ("cdrom", "floppy") or disk.find("readonly") is not None
            if target is not None and not removable:
                yield target.get("dev", "")

    def _disk(self, disk: DiskRecord, folder: Path, damaged: int) -> DiskProof:
        """Restore it alone, so that scratch space is needed for one disk at a time; compare, check, remove."""
        with self._phase("restore"):
            report = self._restore(disk, folder, best_effort=bool(damaged))
        image = report.disks[0].path
        lost = sum(each.length for each in report.lost if each.target == disk.target)
        try:
            with self._phase("compare"):
                compared = compare_image(self._repository, disk, image, self._progress, self._cancel)
        except IntegrityError as error:
            compared = Compared(image.stat().st_size, 0, 0, "")
            self._add(f"{disk.target}: map", "can be read", error.message, ok=False)
        with self._phase("fsck"):
            file_systems = check_file_systems(image)
        _remove(report)
        proof = DiskProof(
            disk.target, disk.size, compared.size, disk.root, compared.root, compared.compared, compared.differing,
            lost, file_systems,
        )  # fmt: skip
        self._judge(proof)
        return proof

    def _restore(self, disk: DiskRecord, folder: Path, *, best_effort: bool) -> RestoreReport:
        """Strictly where nothing was found damaged, so that a tier which does not answer is an error and no loss."""
        target = RestoreTarget(folder, "raw", (disk.target,), best_effort=best_effort)
        try:
            return restore_point(self._repository, self._point, target, self._progress, self._cancel)
        except IntegrityError:
            if best_effort:
                raise
            return self._restore(disk, folder, best_effort=True)

    def _judge(self, proof: DiskProof) -> None:
        name = proof.target
        self._add(f"{name}: size", f"{proof.size} bytes", f"{proof.size_found} bytes", proof.size == proof.size_found)
        self._add(f"{name}: lost", "0 bytes", f"{proof.lost} bytes", ok=not proof.lost)
        found = f"{proof.differing} of {proof.compared} bytes differ"
        self._add(f"{name}: image", "as the map says", found, ok=not proof.differing and proof.compared == proof.size)
        self._add(f"{name}: root", proof.root[:16], proof.root_found[:16] or "none", proof.root == proof.root_found)
        for each in proof.file_systems:
            found = f"{each.state}{f': {each.detail}' if each.detail else ''}"
            self._add(f"{name}: {each.type} on {each.place}", "clean", found, ok=each.state != "damaged")

    def _stale(self) -> None:
        if self._order.stale is not None:
            found = "; ".join(self._order.stale) or "what the VM did not change since is equal"
            self._add("source", "equal where the VM changed nothing since", found, ok=not self._order.stale)

    def _add(self, name: str, expected: str, found: str, ok: bool) -> None:
        self._checks.append(Check(name, expected, found, ok=ok))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - started


def _evidence(
    repository: Repository, point: str, vm: str, checks: tuple[Check, ...], seconds: dict[str, float], **facts: object
) -> Evidence:
    return Evidence(
        point=point,
        vm=vm,
        kind="verification",
        verdict="passed" if all(check.ok for check in checks if check.critical) else "failed",
        time=repository.clock(),
        host=socket.gethostname(),
        checks=checks,
        seconds=seconds,
        tool=f"vmcellar {vmcellar.__version__}",
        **facts,  # type: ignore[arg-type]  # pydantic checks them
    )


def _remove(report: RestoreReport) -> None:
    shutil.rmtree(report.directory)


@contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    """A new folder for images, under a lock; folders whose process is gone are removed first. Always removed."""
    base = scratch / FOLDER
    make_passable(base)
    made = base / secrets.token_hex(8)
    with ExitStack() as held:
        try:
            with _locked(base, wait=True):  # nobody takes a folder for a leftover before its owner holds it
                for left in base.iterdir():
                    with suppress(BlockingIOError, NotADirectoryError), _locked(left):
                        shutil.rmtree(left)
                made.mkdir(mode=0o700)
                held.enter_context(_locked(made))
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
