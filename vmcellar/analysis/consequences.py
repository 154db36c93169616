"""What follows from an anomaly, by the policy of the VM's job: pins, a forced full, a drill, an event; each once.

An anomaly is first written down with what is to be done, then that is done, and then noted as done: what dies in
between is finished by the next call. Which points can be trusted is decided when the anomaly is written down, and does
not change. Later finds of the same strangeness belong to the same row; so do those after a person has judged it, of
the disks that it names, for as long as it lasts. Rows are changed by columns, as a person may judge while this works.

Hosts that share a catalog share its rows: the first to look writes an anomaly down, each asks its own next backup of
the VM to read everything, and what a host without a job for the VM wrote down is decided by the first that has one.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vmcellar.analysis.anomalies import MERGE_HOURS
from vmcellar.backup import wanted_full
from vmcellar.catalog.models import Anomaly as Row
from vmcellar.config.onanomaly import OnAnomaly
from vmcellar.errors import PermanentError, UsageError
from vmcellar.policy.governing import governing_job
from vmcellar.repository import evidence
from vmcellar.upkeep import pins

if TYPE_CHECKING:
    from pathlib import Path

    from vmcellar.analysis.anomalies import Anomaly
    from vmcellar.catalog.catalog import Catalog
    from vmcellar.config.model import Config
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository

DAY = 86400.0
LOOK_DAYS, MOST_LOOK_DAYS = 7.0, 60.0
"""How far back a look goes: so far at the least, and to the last look of this host, if that is not longer ago."""
WANTED = "wanted"
LOOKED = "anomalies-looked"
"""The file in the state directory that says when this host looked last, in seconds since the epoch."""
SAME_SECONDS = {"growth": 21 * DAY}
OLDER_DAYS = (0.0, 1.0, 7.0, 30.0)
"""How much older than the newest good point each pinned point is, at least: an attack may have begun unseen."""
TOLD_ONLY = OnAnomaly(pin=0, full=False, drill=False)
"""For a VM that no job governs: no policy is guessed."""


def days_to_look(state: Path, now: float) -> float:
    """How many days back this look has to go, with a day that both looks see: backups may go on for weeks while no
    flow runs, and what happened meanwhile is nothing less.
    """
    try:
        last = float((state / LOOKED).read_text())
    except (FileNotFoundError, ValueError):
        return LOOK_DAYS
    return min(max(LOOK_DAYS, (now - last) / DAY + 1), MOST_LOOK_DAYS)


def note_looked(state: Path, now: float) -> None:
    """Say that everything up to `now` was looked at, and what followed was done. A crash leaves the old time."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = state / f"{LOOKED}.new"
    new.write_text(f"{now}\n")
    new.replace(state / LOOKED)


def note(catalog: Catalog, repository: Repository, config: Config, found: Sequence[Anomaly], now: float) -> list[Row]:
    """Write down what is found and not known yet, with what is to follow; bring what is known up to date.

    Gives the rows that are new. Nothing is done yet.
    """
    new: list[Row] = []
    standings = evidence.standings(repository.tier) if found else {}
    for together in _by_vm_and_kind(_not_judged(catalog, catalog.anomalies(), found)):
        vm, kind = together[0].vm, together[0].kind
        points = evidence.sound(repository.points_of(vm), standings)
        rules = _rules(config, vm, points)
        if kind not in rules.kinds:
            continue
        of_vm = catalog.anomalies(vm)  # as it is now: another host may look at the same minute
        row = next((each for each in of_vm if each.judged is None and _same(each, together)), None)
        fresh = row is None
        row = row or _row(catalog.repository, together, now)
        row.last = max(row.last, *(each.last for each in together))
        if not (row.pins or row.full or row.drill) and rules != TOLD_ONLY:
            row.pins = trusted(points, row.began, rules.pin, pins.for_good(repository))
            row.full, row.drill = rules.full, WANTED if rules.drill else ""
            row.acted = None
        if fresh:
            catalog.add([row])
            new.append(row)
        else:
            catalog.change([row], ("last", "pins", "full", "drill", "acted"))
    return new


def act(catalog: Catalog, repository: Repository, config: Config, now: float) -> list[Row]:
    """Do what was written down and not done: pin, and ask for a full backup. Gives those rows.

    A full backup is asked of this host for all that nobody has judged, whichever host found it, and no more for a VM
    of which all is judged.
    """
    known = catalog.anomalies()
    waiting = [row for row in known if row.acted is None and row.judged is None]
    for row in waiting:
        _pin(repository, row)
    _ask(config, known)
    for row in waiting:
        row.acted = now
        catalog.change([row], ("acted",))
    return waiting


def claim_drill(catalog: Catalog, row: Row) -> bool:
    """Whether this host is to drill for an anomaly; from then on no other one does. What a flow that died had begun is
    begun anew by the next one of its host.
    """
    begun = _begun_here()
    if row.drill not in (WANTED, begun) or not catalog.claim(row, "drill", (WANTED, begun), begun):
        return False
    row.drill = begun
    return True


def waits_for_drill(row: Row) -> bool:
    """Whether nobody has begun the drill that follows, or a flow of this host did and may have died."""
    return row.drill in (WANTED, _begun_here())


def _begun_here() -> str:
    return f"begun on {socket.gethostname()}"


def _ask(config: Config, known: Sequence[Row]) -> None:
    wanted = [row for row in known if row.full and row.judged is None]
    for row in wanted:
        wanted_full.ask(config.state, row.vm, f"its backups looked strange: {row.kind}", row.noted)
    for vm in {row.vm for row in known} - {row.vm for row in wanted}:
        wanted_full.withdraw(config.state, vm)


def judge(catalog: Catalog, repository: Repository, config: Config, vm: str, verdict: str, *, unpin: bool) -> list[Row]:
    """Close all open anomalies of a VM with a person's words; with `unpin` the pins made for them go, too.

    A full backup that was asked for and has not come yet is not asked for any more. UsageError when none is open.
    """
    known = catalog.anomalies(vm)
    judged = [row for row in known if row.judged is None]
    if not judged:
        raise UsageError(f"{vm} has no anomaly that waits to be judged", hint="`vmcellar anomalies` lists them")
    now = repository.clock()
    if unpin:
        _unpin(repository, judged)
    wanted_full.withdraw(config.state, vm)
    for row in judged:
        row.judged, row.verdict = now, verdict
    catalog.change(judged, ("judged", "verdict"))
    return judged


def trusted(points: Sequence[RestorePoint], began: float, most: int, pinned: Iterable[str]) -> list[str]:
    """The ids of up to `most` verified points from before `began` to pin: the newest, and older ones apart from it.

    Those that are pinned already need no pin of ours.
    """
    good = sorted((p for p in points if p.verified and p.time < began), key=lambda p: (p.time, p.id))
    if not good:
        return []
    chosen: list[str] = []
    for days in OLDER_DAYS[:most]:
        older = [p.id for p in good if p.time <= good[-1].time - days * DAY]
        chosen += older[-1:]
    held = set(pinned)
    return [point for point in dict.fromkeys(chosen) if point not in held]


def _pin(repository: Repository, row: Row) -> None:
    """Pin the row's points that are there; those of a call that died in between are pinned already."""
    there = {point.id: point for point in repository.points_of(row.vm)}
    for name in row.pins:
        if name not in there or name in pins.for_good(repository):
            continue
        try:
            pins.pin(repository, there[name], _why(row))
        except PermanentError:  # another host pinned it meanwhile, or a prune dropped it: the other VMs' turn comes
            still = name in {point.id for point in repository.points_of(row.vm)}
            if still and name not in pins.for_good(repository):
                raise


def _unpin(repository: Repository, rows: Sequence[Row]) -> None:
    """Remove the pins that were made for these; one that says something else is a person's."""
    notes = {point: _why(row) for row in rows for point in row.pins}
    for each in pins.listed(repository):
        if each.pin is not None and not each.holder and each.pin.note == notes.get(each.point):
            pins.unpin(repository, each.point)


def _why(row: Row) -> str:
    """The note of a pin."""
    return f"{row.kind} was seen after it; `vmcellar anomalies {row.vm} --judged TEXT` removes this pin"


def _by_vm_and_kind(found: Sequence[Anomaly]) -> list[list[Anomaly]]:
    groups: dict[tuple[str, str], list[Anomaly]] = {}
    for one in found:
        groups.setdefault((one.vm, one.kind), []).append(one)
    return list(groups.values())


def _not_judged(catalog: Catalog, known: Sequence[Row], found: Sequence[Anomaly]) -> list[Anomaly]:
    """Those that no person's verdict is about: one is about a kind, the disks that it names, and what goes on there.

    Where one goes on, its row says until when.
    """
    left = []
    for one in found:
        about = [row for row in known if row.judged is not None and one.disk in row.disks.split(", ")]
        row = next((each for each in about if _same(each, [one])), None)
        if row is None:
            left.append(one)
        elif one.last > row.last:
            row.last = one.last
            catalog.change([row], ("last",))
    return left


def _same(row: Row, together: Sequence[Anomaly]) -> bool:
    """Whether a known anomaly is what is found now: as `find` takes repeats for one."""
    if (row.vm, row.kind) != (together[0].vm, together[0].kind):
        return False
    apart = SAME_SECONDS.get(row.kind, MERGE_HOURS * 3600)
    return any(one.at <= row.last + apart and one.last >= row.at - apart for one in together)


def _row(repository: str, together: Sequence[Anomaly], now: float) -> Row:
    worst = max(together, key=lambda one: one.score)
    return Row(
        id=uuid.uuid4().hex,
        repository=repository,
        vm=worst.vm,
        kind=worst.kind,
        disks=", ".join(sorted({one.disk for one in together})),
        began=min(one.began for one in together),
        at=min(one.at for one in together),
        last=max(one.last for one in together),
        score=worst.score,
        text=worst.text,
        noted=now,
    )


def _rules(config: Config, vm: str, points: Sequence[RestorePoint]) -> OnAnomaly:
    newest = max(points, key=lambda point: point.time, default=None)
    job = governing_job(config.backups, vm, newest.job if newest else "")
    return job.on_anomaly if job else TOLD_ONLY
