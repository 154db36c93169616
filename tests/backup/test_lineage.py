"""Which checkpoints stay on a VM, and what a differential is measured against."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmcellar.backup import lineage
from vmcellar.backup.model import Kind
from vmcellar.config.jobs import BackupJob
from vmcellar.config.model import Config
from vmcellar.repository.points import DiskRecord, RestorePoint

DISK = DiskRecord(target="vda", size=1 << 20, root="0" * 64, level=0, format="qcow2", identity="i")


def point(number: int, kind: Kind = "incremental", job: str = "", *, verified: bool = True) -> RestorePoint:
    return RestorePoint(
        id=f"2027011{number}T080000Z-0000000{number}",
        vm="vm",
        vm_uuid="u",
        time=float(number),
        kind=kind,
        reason="",
        parent=None,
        consistency="crash",
        verified=verified,
        checkpoint=f"c{number}",
        checkpoint_xml="<c/>",
        disks=(DISK,),
        job=job,
    )


POINTS = [point(1, "full"), *map(point, range(2, 7))]


def kept(points: list[RestorePoint], **job: object) -> list[str]:
    jobs = (BackupJob.model_validate({"name": "weekly", **job}),) if job else ()
    return [record.name for record in lineage.kept(Config(backups=jobs), "vm", points)]


@pytest.mark.parametrize("domains", [["vm"], ["v*"], ["*"]])
def test_the_base_of_a_differential_job_stays(domains: list[str]) -> None:
    assert kept(POINTS, mode="differential", domains=domains) == ["c1", "c4", "c5", "c6"]


@pytest.mark.parametrize("job", [{}, {"mode": "auto"}, {"mode": "differential", "domains": ["other"]}])
def test_without_such_a_job_the_newest_three_stay(job: dict[str, object]) -> None:
    assert kept(POINTS, **job) == ["c4", "c5", "c6"]


@pytest.mark.parametrize("number", [0, 3])
def test_a_job_that_selects_by_tag_is_known_by_its_points_since_the_full(number: int) -> None:
    points = [*POINTS]
    points[number] = replace(points[number], job="weekly")
    assert kept(points, mode="differential", domains=["tag:prod"]) == ["c1", "c4", "c5", "c6"]
    assert kept([*points, point(7, "full"), point(8), point(9)], mode="differential", domains=["tag:prod"]) == [
        "c7",
        "c8",
        "c9",
    ]


def test_only_the_newest_verified_full_is_a_base() -> None:
    points = [*POINTS, point(7, "full", verified=False), point(8)]
    assert lineage.base_of(points) == POINTS[0]
    assert kept(points, mode="differential") == ["c1", "c5", "c6", "c8"]


def test_a_disk_read_whole_since_the_base_is_told() -> None:
    assert lineage.read_anew(POINTS, POINTS[0], ["vda"]) == ""
    points = [*POINTS]
    points[2] = replace(points[2], disks=(replace(DISK, reason="the change tracker missed changes"),))
    assert "vda was read whole" in lineage.read_anew(points, POINTS[0], ["vda"])
    assert lineage.read_anew(points, POINTS[0], ["vdb"]) == "", "another disk's matter"
    assert lineage.read_anew(points, points[2], ["vda"]) == "", "before the base"
