"""The report of one backup, as people read it."""

from __future__ import annotations

from dataclasses import replace

from vmcellar.backup.model import DiskFigures, PointSummary
from vmcellar.backup.report import markdown_report, moment_text, span_text

MIB = 1 << 20
DISK = DiskFigures("vda", 256 * MIB, "r", "first backup", 128 * MIB, 0, 128 * MIB, 0, 128 * MIB, 64 * MIB)
FULL = PointSummary(
    id="20261129T092720Z-52f733cf",
    run_id="r1",
    vm="web1",
    kind="full",
    reason="first backup",
    parent=None,
    time="2026-11-29T10:27:20.525545+01:00",
    consistency="crash",
    verified=True,
    freeze_seconds=0.0,
    held_seconds=0.84,
    bytes_read=128 * MIB,
    bytes_changed=128 * MIB,
    bytes_stored=64 * MIB,
    disks=(DISK, replace(DISK, target="vdb", bytes_new=0, bytes_stored=0)),
    uncovered=(),
    warnings=(),
    seconds={"export": 0.562, "verify": 0.19},
)


def test_a_full_point() -> None:
    text = markdown_report(FULL)
    assert "- taken 2026-11-29 09:27:20 UTC, read back from storage and **verified**" in text
    assert "- crash-consistent: as after a power cut" in text
    assert "- read in full, because: first backup" in text
    assert "| vda | 256 MiB | 128 MiB | 0 B | 0 B | 128 MiB | 64 MiB | 2.00 | 128 MiB |\n" in text
    assert "| vdb | 256 MiB | 128 MiB | 0 B | 0 B | 0 B | 0 B |  | 128 MiB |\n" in text, "nothing stored, no ratio"
    assert "| export | 0.56 |" in text
    assert all(word not in text for word in ("None", "in full because", "frozen for", "## Warnings", "## Not covered"))


def test_an_incremental_one_with_a_disk_that_was_read_in_full() -> None:
    disks = (replace(DISK, full_reason=""), replace(DISK, target="vdb", full_reason="it is new"))
    frozen = replace(FULL, consistency="quiesced", freeze_seconds=0.307)
    point = replace(frozen, kind="incremental", reason="", parent="p1", disks=disks, verified=False)
    text = markdown_report(replace(point, uncovered=("vdc: shareable",), warnings=("the agent was slow",)))
    assert "**NOT VERIFIED**" in text
    assert "- incremental to `p1`" in text
    assert "- quiesced: the guest agent froze the file systems, for 0.31 s" in text
    assert "| changed | in full because |" in text
    assert "| 2.00 | 128 MiB |  |\n" in text
    assert "| 2.00 | 128 MiB | it is new |\n" in text
    assert text.index("vdc: shareable") < text.index("the agent was slow") < text.index("## Disks"), (
        "first what is wrong"
    )


def test_words() -> None:
    assert moment_text("2026-01-31T02:00:07Z") == "2026-01-31 02:00:07 UTC"
    spans = {59: "59 s", 720: "12 min", 7200: "2 h", 9000: "2 h 30 min", 172800: "2 d", 176400: "2 d 1 h"}
    assert {seconds: span_text(seconds) for seconds in spans} == spans
