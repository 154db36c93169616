"""Evidence as objects: every bit counts, names say what records say, and what speaks against a point is handed down."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.repository.fakes import FixedKeyring
from tests.repository.writing import back_up, point_of
from vmcellar.errors import IntegrityError
from vmcellar.repository import evidence, layout, scrub
from vmcellar.repository.evidence import Check, DiskProof, Evidence, FileSystem, Kind, Verdict
from vmcellar.repository.points import DiskRecord
from vmcellar.repository.repository import Repository

REPOSITORY = b"r" * 16
POINT = "20270115T080000Z-f81c294b"


def some(point: str = POINT, kind: Kind = "drill", verdict: Verdict = "passed", time: float = 1.8e9) -> Evidence:
    checks = (Check("bóot", "alive within 60 s", "agent after 12 s", ok=True),)
    file_systems = (FileSystem("disk", "ext4", "clean"),)
    disks = (DiskProof("vda", 1 << 20, 1 << 20, "ab" * 32, "ab" * 32, 1 << 20, file_systems=file_systems),)
    return Evidence(
        point, "web", kind, verdict, time, "host", checks, {"boot": 1.5}, disks, rto=12.5, screenshot=b"\x89PNG\xff"
    )


def test_it_comes_back_equal(repository: Repository) -> None:
    name = evidence.write(repository, some())
    assert (name.point, name.kind, name.verdict, name.stamp) == (POINT, "drill", "passed", "20270115T080000Z")
    assert evidence.read(repository, name) == replace(some(), repository=repository.id.hex())
    assert evidence.names(repository.tier) == [name]


def test_every_flipped_bit_and_cut_is_found_and_named(keyring: FixedKeyring) -> None:
    record = replace(some(), repository=REPOSITORY.hex())
    name = evidence.new_name(record)
    data = evidence.encode(keyring, REPOSITORY, name, record)
    for place in range(len(data)):
        for damaged in (data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :], data[:place]):
            with pytest.raises(IntegrityError, match=name):
                evidence.decode(keyring, REPOSITORY, name, damaged)


def test_renamed_foreign_and_contradicting_records_are_refused(keyring: FixedKeyring) -> None:
    record = replace(some(verdict="failed"), repository=REPOSITORY.hex())
    name = evidence.new_name(record)
    data = evidence.encode(keyring, REPOSITORY, name, record)
    assert evidence.decode(keyring, REPOSITORY, name, data) == record
    renamed = name.replace("failed", "passed")
    with pytest.raises(IntegrityError):
        evidence.decode(keyring, REPOSITORY, renamed, data)
    with pytest.raises(IntegrityError):
        evidence.decode(keyring, b"o" * 16, name, data)
    with pytest.raises(IntegrityError, match="something else"):
        evidence.decode(keyring, REPOSITORY, renamed, evidence.encode(keyring, REPOSITORY, renamed, record))


def test_what_is_written_last_counts_whatever_the_clocks_of_hosts_say(repository: Repository) -> None:
    """The first host's clock is an hour ahead; that its proof passed says nothing about what was found after it."""
    evidence.write(repository, some(kind="verification", time=1.8e9 + 3600))
    evidence.write(repository, some(kind="verification", verdict="failed", time=1.8e9))
    assert evidence.standings(repository.tier)[POINT].failed
    mended = evidence.write(repository, some(kind="verification", time=1.8e9 + 60))
    assert not evidence.standings(repository.tier)[POINT].failed
    assert evidence.read(repository, mended).time == 1.8e9 + 3602


def test_the_newest_of_each_kind_counts(repository: Repository) -> None:
    tier = repository.tier
    assert evidence.standings(tier) == {}
    evidence.write(repository, some(kind="verification", verdict="failed", time=1.8e9))
    assert evidence.standings(tier)[POINT].failed
    evidence.write(repository, some(kind="drill", time=1.8e9 + 1))
    assert evidence.standings(tier)[POINT].failed, "a drill does not say that the verification was wrong"
    evidence.write(repository, some(kind="verification", time=1.8e9 + 2))
    standing = evidence.standings(tier)[POINT]
    assert standing.proven
    assert [each.kind for each in standing.newest] == ["verification", "drill"]
    other = POINT.replace("f81c", "0000")
    evidence.write(repository, some(other))
    assert evidence.standings(tier, other).keys() == {other}


def test_of_one_second_what_speaks_against_the_point_counts(repository: Repository) -> None:
    """Names tell no order within a second, so a failed proof must not hide behind one that passed just before."""
    kinds: tuple[Kind, ...] = ("drill", "verification")
    verdicts: tuple[Verdict, ...] = ("passed", "failed", "passed")
    for kind in kinds:
        for verdict in verdicts:
            evidence.write(repository, some(kind=kind, verdict=verdict))
        assert evidence.standings(repository.tier)[POINT].failed
        assert [each.verdict for each in evidence.names(repository.tier) if each.kind == kind][-1] == "failed"


def test_doubt_is_handed_down_until_all_is_read_anew(repository: Repository) -> None:
    disk = DiskRecord("vda", 1 << 20, "ab" * 32, 0, "raw", "image")
    first = point_of("web", disk, 1.8e9)
    second = point_of("web", disk, 1.8e9 + 60, first.id)
    third = point_of("web", disk, 1.8e9 + 120, second.id)
    full = point_of("web", disk, 1.8e9 + 180)
    fourth = point_of("web", disk, 1.8e9 + 240, full.id)
    points = [fourth, full, third, second, first]
    evidence.write(repository, some(second.id, verdict="failed"))
    standing = evidence.standings(repository.tier)
    assert evidence.doubtful(points, standing) == {second.id, third.id}
    shown = {point.id: point.verified for point in evidence.judged(points, standing)}
    assert shown == {first.id: True, second.id: False, third.id: True, full.id: True, fourth.id: True}
    relied_on = {point.id: point.verified for point in evidence.sound(points, standing)}
    assert relied_on == {first.id: True, second.id: False, third.id: False, full.id: True, fourth.id: True}


def test_doubt_is_handed_down_whatever_the_clocks_said(repository: Repository) -> None:
    disk = DiskRecord("vda", 1 << 20, "ab" * 32, 0, "raw", "image")
    ahead = point_of("web", disk, 1.8e9 + 3600)
    child = point_of("web", disk, 1.8e9 + 60, ahead.id)
    grandchild = point_of("web", disk, 1.8e9 + 30, child.id)
    full = point_of("web", disk, 1.8e9 + 90)
    evidence.write(repository, some(ahead.id, verdict="failed"))
    doubted = evidence.doubtful([grandchild, child, full, ahead], evidence.standings(repository.tier))
    assert doubted == {ahead.id, child.id, grandchild.id}


def test_scrub_names_damaged_evidence(repository: Repository, pool: ThreadPoolExecutor) -> None:
    point = back_up(repository, pool, [(0, b"a" * 65536)], 1 << 20)
    name = evidence.write(repository, some(point.id))
    assert scrub.verify_all(repository).ok
    data = repository.tier.get(name.key)
    repository.tier.delete(name.key)
    repository.tier.put(name.key, data[:-1] + bytes([data[-1] ^ 1]))
    repository.tier.put(f"{layout.EVIDENCE}nonsense", b"")
    report = scrub.verify_all(repository)
    assert [(finding.kind, finding.name) for finding in report.findings] == [
        ("evidence", name.key),
        ("evidence", f"{layout.EVIDENCE}nonsense"),
    ]
    assert evidence.names(repository.tier) == [name]
