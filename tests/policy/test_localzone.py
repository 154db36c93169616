"""The zone of this host, also where /etc/localtime is a copy of its file."""

from __future__ import annotations

from datetime import timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tasks import timetable
from tasks.timetable import prefect_schedule
from vmcellar.config.schedules import Schedule
from vmcellar.errors import PermanentError
from vmcellar.policy import localzone

NIGHTLY = Schedule(cron="0 2 * * *")
ZONES = Path("/usr/share/zoneinfo")


def zone_of(schedule: Schedule) -> object:
    return prefect_schedule(schedule).model_dump()["timezone"]


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose /etc/localtime is a file of its own."""
    monkeypatch.delenv("TZ", raising=False)
    monkeypatch.setattr(localzone, "_LOCALTIME", tmp_path / "localtime")
    monkeypatch.setattr(localzone, "_NAME", tmp_path / "timezone")
    return tmp_path / "localtime"


def test_a_copy_has_the_name_of_what_it_was_copied_from(copied: Path) -> None:
    copied.write_bytes((ZONES / "Europe" / "Lisbon").read_bytes())
    zone = localzone.local_zone()
    assert isinstance(zone, ZoneInfo)
    assert (ZONES / zone.key).read_bytes() == copied.read_bytes()
    assert zone_of(NIGHTLY) == zone.key, "a window and a schedule mean the same two o'clock"


def test_of_zones_alike_the_one_that_the_host_names_is_taken(copied: Path) -> None:
    copied.write_bytes((ZONES / "Europe" / "Berlin").read_bytes())
    (copied.parent / "timezone").write_text("Europe/Berlin\n")
    assert localzone.local_zone() == ZoneInfo("Europe/Berlin")


def test_a_link_names_the_zone(copied: Path) -> None:
    copied.symlink_to(ZONES / "Asia" / "Tokyo")
    assert localzone.local_zone() == ZoneInfo("Asia/Tokyo")


def test_a_zone_without_a_name_is_no_zone_for_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    """By UTC they would begin outside of their windows, each night, and be skipped."""
    monkeypatch.setattr(timetable, "local_zone", lambda: timezone(timedelta(hours=5, minutes=30)))
    with pytest.raises(PermanentError, match="has no name"):
        zone_of(NIGHTLY)
    assert zone_of(Schedule(cron="0 2 * * *", timezone="Asia/Kolkata")) == "Asia/Kolkata"
    monkeypatch.setattr(timetable, "local_zone", lambda: timezone(timedelta(0)))
    assert zone_of(NIGHTLY) == "UTC"
