"""A drill: restore a point for real, boot it alone, look whether it lives, check it, measure it, throw it away.

By the policy's `method` it starts from restored images, or at once from the repository. The time from the order to the
last passed check is the measured RTO. Nothing of the old VM is touched: the copy has a new name and identity, images of
its own, and no way out. Whatever happens, it is removed again; what a killed process leaves is cleared by the next
drill (`drill_journal`).
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt

import vmcellar
from vmcellar.config.drill import Drill, DrillCommand
from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.policy.governing import governing_job
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository.evidence import Check, DiskProof, Evidence
from vmcellar.restore import drill_domain, drill_journal
from vmcellar.restore.boot_disks import DEFINITION, with_backing
from vmcellar.restore.boot_journal import new_entry
from vmcellar.restore.define import define_domain
from vmcellar.restore.domain_xml import TPM_ARCHIVE
from vmcellar.restore.drill_alive import Life, Watch
from vmcellar.restore.drill_checks import checks_of
from vmcellar.restore.drill_copy import Copy, planned, restored, served
from vmcellar.restore.drill_journal import Journal
from vmcellar.restore.restore import DOMAIN_XML
from vmcellar.restore.serve import Opening
from vmcellar.sources.libvirt_connection import Connection, explain
from vmcellar.sources.libvirt_uri import refuse_other_host

if TYPE_CHECKING:
    from vmcellar.config.model import Config
    from vmcellar.crypto.recipient import PrivateKey
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class DrillOrder:
    """How to drill: journals go to `state`, images to `scratch`, where QEMU's user must be able to read.

    `rto_limit` in seconds. With `keep` the VM and its images stay, and run, until `drill_journal.clear` is told to; so
    they are restored whatever the rules say. `opening` is needed where they say "boot".
    """

    uri: str
    state: Path
    scratch: Path
    rules: Drill = field(default_factory=Drill)
    rto_limit: float | None = None
    keep: bool = False
    opening: Opening | None = None


def drill_point(
    repository: Repository,
    point: RestorePoint,
    order: DrillOrder,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> Evidence:
    """Drill a point; the evidence is given, not written. Damage and a guest that does not live are findings.

    PermanentError or TransientError when this host cannot run the VM at all (no space, no such network, libvirt
    refuses) or cannot read the repository: that says nothing about the point. CancelledError when stopped. Clears
    leftovers of dead drills first.
    """
    refuse_other_host(order.uri, f"drilling {point.vm}")
    drill_journal.clear(order.state)
    connection = Connection(order.uri)
    try:
        if point.artifact(DOMAIN_XML) is None:
            raise PermanentError(
                f"point {point.id} of {point.vm} holds no domain XML, so it cannot be drilled",
                hint="`vmcellar verify POINT --deep` checks its disks",
            )
        return _Drill(repository, point, order, connection, progress, cancel or CancelToken()).run()
    finally:
        connection.close()


def order_of(
    config: Config,
    point: RestorePoint,
    commands: Sequence[str] = (),
    *,
    keep: bool = False,
    private: PrivateKey | None = None,
) -> DrillOrder:
    """The order for a point as the policy of its job says, with further commands that must end with 0.

    `private` is the key by which the repository was opened in recipient mode.
    """
    job = governing_job(config.backups, point.vm, point.job)
    rules = job.drill if job else Drill()
    more = tuple(DrillCommand(run=line) for line in commands)
    return DrillOrder(
        config.libvirt.uri,
        config.state,
        config.scratch,
        rules.model_copy(update={"commands": (*rules.commands, *more)}),
        job.rto if job else None,
        keep,
        Opening(config.source, private) if config.source else None,
    )


class _Drill:
    """One drill. One thread."""

    def __init__(
        self,
        repository: Repository,
        point: RestorePoint,
        order: DrillOrder,
        connection: Connection,
        progress: ProgressSink,
        cancel: CancelToken,
    ) -> None:
        self._repository = repository
        self._point = point
        self._order = order
        self._connection = connection
        self._progress = progress
        self._cancel = cancel
        self._name = _name(point)
        self._folder = order.scratch / drill_journal.FOLDER / self._name
        self._seconds: dict[str, float] = {}
        self._checks: list[Check] = []

    def run(self) -> Evidence:
        order = self._order
        journal = Journal(
            self._name, self._point.id, self._point.vm, order.uri, str(self._folder.absolute()), order.keep
        )
        with drill_journal.drilling(order.state, journal), ExitStack() as held:
            life = Life("", "not started")
            disks: tuple[DiskProof, ...] = ()
            try:
                copy = self._copy(held)
            except IntegrityError as error:
                self._checks.append(Check("restore", "every byte", error.message, ok=False))
            else:
                found = "every byte is found; what the guest read was checked" if copy.served else "every byte"
                self._checks.append(Check("restore", "every byte", found, ok=True))
                disks = tuple(
                    DiskProof(disk.target, disk.size, copy.sizes[disk.target], disk.root) for disk in self._point.disks
                )
                life = self._boot(copy, held)
            return self._evidence(life, disks)

    def _copy(self, held: ExitStack) -> Copy:
        if self._order.rules.method == "restore" or self._order.keep:
            with self._phase("restore"):
                return restored(self._repository, self._point, self._folder, self._progress, self._cancel)
        if self._order.opening is None:
            raise PermanentError("a drill by `method: boot` needs the configuration as a file")
        with self._phase("plan"):
            used = planned(self._repository, self._point, self._cancel)
        entry = new_entry(self._name, "", self._point.id, self._point.vm, self._folder.absolute(), tuple(used))
        with self._phase("serve"):
            return served(self._repository, self._order.opening, self._point, entry, used, held)

    def _boot(self, copy: Copy, held: ExitStack) -> Life:
        domain = self._define(copy)
        if copy.served:
            held.callback(_switch_off, domain)  # before its server ends, for which it would wait
        with self._phase("start"):
            self._start(domain)
        with self._phase("alive"):
            life = Watch(domain, self._folder, self._order.rules, self._cancel).life()
        self._checks.append(Check("alive", "a sign of life", life.found, ok=bool(life.sign)))
        by_agent = "agent" in self._order.rules.accept and self._point.consistency == "quiesced"
        if by_agent and life.sign != "agent":
            self._checks.append(Check("agent", "an answer, as at the backup", "none", ok=False))
        if life.sign:
            with self._phase("checks"):
                self._checks += checks_of(domain, self._order.rules, agent=life.sign == "agent", cancel=self._cancel)
        self._checks += copy.check_served(failed=self._failed())
        return life

    def _failed(self) -> bool:
        return any(check.critical and not check.ok for check in self._checks)

    def _define(self, copy: Copy) -> libvirt.virDomain:
        with self._phase("define"):
            network = self._order.rules.network
            artifacts = copy.files.boot
            text = artifacts[DOMAIN_XML].read_text(encoding="utf-8")
            xml = drill_domain.isolated_xml(text, self._folder, network)
            self._connection.names()  # opens the connection, or says why not
            define_domain(self._connection, xml, self._name, copy.files, artifacts.get(TPM_ARCHIVE))
            domain = self._connection.domain(self._name)
            if network:
                drill_domain.check_isolated(domain.connect(), network)
            if copy.served:
                self._connection.define(with_backing(domain.XMLDesc(DEFINITION), copy.served), self._name)
            return self._connection.domain(self._name)

    def _start(self, domain: libvirt.virDomain) -> None:
        self._cancel.check()
        try:
            domain.create()
        except libvirt.libvirtError as error:
            raise explain(error, self._name, "starting the restored VM (this says nothing about the point)") from error

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = time.monotonic() - started

    def _evidence(self, life: Life, disks: tuple[DiskProof, ...]) -> Evidence:
        rto = sum(self._seconds.values()) if life.sign else None
        limit = self._order.rto_limit
        if limit is not None and rto is not None:
            self._checks.append(Check("rto", f"at most {limit:.0f} s", f"{rto:.1f} s", ok=rto <= limit, critical=False))
        return Evidence(
            point=self._point.id,
            vm=self._point.vm,
            kind="drill",
            verdict="failed" if self._failed() else "passed",
            time=self._repository.clock(),
            host=socket.gethostname(),
            checks=tuple(self._checks),
            seconds=self._seconds,
            disks=disks,
            alive=life.sign,
            rto=rto,
            rto_limit=limit,
            tool=f"vmcellar {vmcellar.__version__}",
            screenshot=life.screen,
        )


def _name(point: RestorePoint) -> str:
    """A name for the copy that no VM has, short enough for the path of a socket, without what libvirt may not like."""
    vm = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in point.vm)[:24]
    return f"vmcellar-drill-{vm}-{secrets.token_hex(4)}"


def _switch_off(domain: libvirt.virDomain) -> None:
    """Its removal is the journal's part, which tries again and tells what stays."""
    with suppress(libvirt.libvirtError):
        domain.destroy()
