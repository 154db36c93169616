"""Faults that a real S3 gateway answers itself: a clock that is wrong, keys that are taken away, a writer that died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import botocore.auth
import pytest
from botocore.config import Config

from lab.ceph import ACCESS, SECRET, Cluster
from tests.cli.conftest import quick_cost
from tests.repository.writing import Change, back_up, read_disk
from tests.tiers.conftest import as_written, new_name
from tests.tiers.test_s3 import open_s3
from vmcellar.config.tiers import TierSettings
from vmcellar.crypto import slots
from vmcellar.errors import PermanentError
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import verify_all
from vmcellar.tiers import s3_errors
from vmcellar.tiers.s3 import S3Tier
from vmcellar.tiers.s3_client import make_client

SIZE = 1 << 20


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


class Sessions:
    """Credentials of a role that end, in a file as AWS's own tools write it; the next take the place of the last."""

    def __init__(self, cluster: Cluster, settings: TierSettings, file: Path) -> None:
        self.settings = settings.model_copy(update={"access_key": None, "secret_key": None, "profile": "session"})
        self._file, self._role = file, cluster.make_role(new_name())
        self._client = boto3.client(
            "sts", endpoint_url=cluster.endpoint, region_name="us-east-1", aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET, config=Config(parameter_validation=False),
        )  # fmt: skip

    def begin(self, seconds: int) -> None:
        answer = self._client.assume_role(RoleArn=self._role, RoleSessionName="backup", DurationSeconds=seconds)
        names = {"access_key_id": "AccessKeyId", "secret_access_key": "SecretAccessKey"}
        names["session_token"] = "SessionToken"
        lines = [f"aws_{name} = {answer['Credentials'][key]}" for name, key in names.items()]
        self._file.write_text("\n".join(["[session]", *lines, ""]))


@pytest.fixture
def sessions(cluster: Cluster, s3_settings: TierSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sessions:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return Sessions(cluster, s3_settings, tmp_path / "credentials")


def test_a_session_that_ends_in_mid_backup_is_named_and_the_next_run_goes_on(
    sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backups go on until the gateway refuses one: at any request of it, and all that were done before are whole."""
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    points: list[RestorePoint] = []
    with ThreadPoolExecutor(2) as pool:
        sessions.begin(600)
        slots.create(open_s3(sessions.settings, tmp_path), b"secret")
        for seconds in (2, 4, 8, 16, 32):  # so long that one backup is done, however busy the machine is
            sessions.begin(seconds)
            with pytest.raises(PermanentError) as caught:
                back_up_for_ever(sessions.settings, tmp_path, pool, points)
            if points:
                break
        assert points
        assert "403" in caught.value.message or "AccessDenied" in caught.value.message
        assert "renew it" in caught.value.hint
        sessions.begin(600)
        repository = opened(sessions.settings, tmp_path)
        assert {point.id for point in points} <= {point.id for point in repository.points()}
        assert verify_all(repository, deep=True).ok
        last = back_up(repository, pool, [(0, b"after")], SIZE, points[-1])
        assert read_disk(repository, last).startswith(b"after")
        assert verify_all(repository, deep=True).ok
        repository.close()


def back_up_for_ever(
    settings: TierSettings, folder: Path, pool: ThreadPoolExecutor, points: list[RestorePoint]
) -> None:
    repository = opened(settings, folder)
    try:
        while True:
            changes: list[Change] = [(0, os.urandom(64 << 10))]
            points.append(back_up(repository, pool, changes, SIZE, points[-1] if points else None))
    finally:
        repository.close()


def opened(settings: TierSettings, folder: Path) -> Repository:
    tier = open_s3(settings, folder)
    found = Repository(tier, slots.unlock(tier, b"secret"), b"r" * 16, folder / "cache")
    found.index.refresh()
    return found


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
