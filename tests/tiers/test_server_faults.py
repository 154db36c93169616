"""Faults that a real S3 gateway answers itself: a clock that is wrong, keys that are taken away, a writer that died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import botocore.auth
import pytest

from lab.ceph import Cluster
from tests.tiers.conftest import as_written, new_name
from tests.tiers.test_s3 import open_s3
from vmcellar.config.tiers import TierSettings
from vmcellar.errors import PermanentError
from vmcellar.tiers import s3_errors
from vmcellar.tiers.s3 import S3Tier
from vmcellar.tiers.s3_client import make_client


@pytest.mark.parametrize("minutes", [-20, 20])
def test_a_wrong_clock_is_refused_by_the_gateway_and_named(
    s3_settings: TierSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    tier = open_s3(s3_settings, tmp_path)
    tier.put("points/one", b"one")
    wrong = datetime.now(UTC) + timedelta(minutes=minutes)
    with monkeypatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda: wrong.replace(tzinfo=None))
        patch.setattr(s3_errors, "_now", lambda: wrong)
        with pytest.raises(PermanentError, match="RequestTimeTooSkewed") as caught:
            tier.put("points/two", b"two")
    assert "chrony" in caught.value.hint
    assert [key for key, _ in tier.list("points/")] == ["points/one"]


def test_a_key_that_is_taken_away_in_mid_run_is_named_and_nothing_looks_empty(
    cluster: Cluster, s3_settings: TierSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = new_name()
    cluster.call(
        "radosgw-admin", "user", "create", "--uid", name, "--display-name", name, "--access-key", name, "--secret", name
    )
    monkeypatch.setenv("LAB_ACCESS", name)
    monkeypatch.setenv("LAB_SECRET", name)
    bucket = new_name()
    settings = s3_settings.model_copy(update={"storage": f"s3://{bucket}/x"})
    make_client(settings, "test").create_bucket(Bucket=bucket)
    tier = open_s3(settings, tmp_path)
    tier.put("points/one", b"one")
    cluster.call("radosgw-admin", "user", "suspend", "--uid", name)
    for call in (lambda: tier.put("points/two", b"two"), lambda: list(tier.list("points/"))):
        with pytest.raises(PermanentError) as caught:
            call()
        assert caught.value.hint
    cluster.call("radosgw-admin", "user", "enable", "--uid", name)
    assert [key for key, _ in tier.list("points/")] == ["points/one"]


_WRITER = """
import sys, time
from pathlib import Path
from vmcellar.config.tiers import TierSettings
from vmcellar.tiers import s3_upload
from vmcellar.tiers import s3_errors
from vmcellar.tiers.s3 import S3Tier
def stand(upload, parts, condition):
    print("parts are there", flush=True)
    time.sleep(600)
s3_upload.Upload.complete = stand
settings = TierSettings.model_validate_json(sys.argv[1])
S3Tier(settings, staging=Path(sys.argv[2])).adopt(Path(sys.argv[3]), "data/aa/aaaa")
"""


def test_the_upload_of_a_writer_that_was_killed_is_found_and_removed(s3_settings: TierSettings, tmp_path: Path) -> None:
    tier = open_s3(s3_settings, tmp_path)
    (tmp_path / "pack").write_bytes(os.urandom(12 << 20))
    document = json.dumps(as_written(s3_settings))
    command = [sys.executable, "-c", _WRITER, document, str(tmp_path / "other"), str(tmp_path / "pack")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"parts are there\n"
        writer.send_signal(signal.SIGKILL)
    assert _uploads(tier) == ["vm-backups/data/aa/aaaa"]
    assert not tier.exists("data/aa/aaaa")
    assert tier.clear_unfinished(3600) == []  # young: a writer may be at work on it
    assert tier.clear_unfinished(-60) == ["data/aa/aaaa"]
    assert _uploads(tier) == []
    tier.adopt(tmp_path / "pack", "data/aa/aaaa")
    assert tier.size("data/aa/aaaa") == 12 << 20


def _uploads(tier: S3Tier) -> list[str]:
    found = tier.client.list_multipart_uploads(Bucket=tier.bucket)
    return [str(each["Key"]) for each in found.get("Uploads", [])]
