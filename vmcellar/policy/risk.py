"""Which restore points to prove first: a pure decision on plain facts.

A point's risk grows with the time since it was last proven, with the number of incrementals since everything was last
read, and with how much its VM matters. A point that was never proven counts as if its last proof lay `NEVER_DAYS`
before it was made; the newest point of a VM, which a restore would take, counts more than the others. So does one whose
VM did something strange, one that shares its VM's chunks with a point that is damaged, and one on a tier that no backup
reads any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

NEVER_DAYS = 14.0
"""A new point is due before one that was proven in the last two weeks."""
INCREMENT_DAYS = 0.5
"""What each incremental since a full read counts, as days without a proof; at most INCREMENTS_MOST of them."""
INCREMENTS_MOST = 60
NEWEST_FACTOR = 3.0
FAILED_FACTOR = 0.25
"""A point that is known to be bad is looked at again (it may have been mended), after the others."""
ANOMALY_FACTOR = 2.0
DAMAGE_FACTOR = 2.0
"""Points of one VM share most of their chunks, and so the medium's errors."""
FAR_FACTOR = 1.5

DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one point; ages in seconds. `proven` is the age of its last proof, None for never.

    `anomaly`: its VM had one that nobody has judged yet. `damage`: another point of its VM was found to be bad. `tier`
    is where its packs lie by the rules of placement, empty for the hot one.
    """

    point: str
    vm: str
    age: float
    proven: float | None
    drilled: float | None
    increments: int
    importance: int
    newest: bool
    failed: bool = False
    anomaly: bool = False
    damage: bool = False
    tier: str = ""


@dataclass(frozen=True, slots=True)
class Risk:
    """A point's score, and what it is made of, in words."""

    facts: Facts
    score: float
    why: str


def risk(facts: Facts) -> Risk:
    """The score of one point: days without a proof, weighted."""
    unproven = facts.age / DAY + NEVER_DAYS if facts.proven is None else facts.proven / DAY
    chain = min(facts.increments, INCREMENTS_MOST) * INCREMENT_DAYS
    score = (max(0.0, unproven) + chain) * facts.importance
    why = ["never proven" if facts.proven is None else f"proven {facts.proven / DAY:.1f} d ago"]
    if facts.increments:
        why.append(f"{facts.increments} incrementals since a full read")
    if facts.importance > 1:
        why.append(f"importance {facts.importance}")
    if facts.newest:
        score *= NEWEST_FACTOR
        why.append("newest of its VM")
    if facts.anomaly:
        score *= ANOMALY_FACTOR
        why.append("an anomaly of its VM is not judged")
    if facts.damage:
        score *= DAMAGE_FACTOR
        why.append("another point of its VM is bad")
    if facts.tier:
        score *= FAR_FACTOR
        why.append(f"on the {facts.tier} tier")
    if facts.failed:
        score *= FAILED_FACTOR
        why.append("known to be bad")
    return Risk(facts, score, ", ".join(why))


def ranked(facts: Iterable[Facts]) -> list[Risk]:
    """All points, the most urgent first; equal scores in the order of VM and point id, newest first."""
    found = [risk(each) for each in facts]
    found.sort(key=lambda each: (each.facts.vm, each.facts.point), reverse=True)
    return sorted(found, key=lambda each: each.score, reverse=True)


def wants_drill(facts: Facts, every: float) -> bool:
    """Whether a point is to be drilled: the newest of its VM, whose last drill is more than `every` seconds old."""
    return facts.newest and (facts.drilled is None or facts.drilled >= every)
