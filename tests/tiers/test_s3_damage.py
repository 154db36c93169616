"""Damage and neighbours in a bucket, against the stand-in for Glacier: any S3 server would do, this one starts fast."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.glacier import Glacier
from tests.cli.conftest import quick_cost
from tests.tiers.frozen import make_frozen
from vmcellar.config.tiers import TierSettings
from vmcellar.repository.repair import RepairRequest, repair
from vmcellar.tiers.local import LocalTier
from vmcellar.tiers.s3 import S3Tier


def test_a_pack_that_rotted_on_the_server_is_mended(
    glacier_server: Glacier, glacier_settings: TierSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the server's digest tells that it is not what was written, so that it cannot be had as a whole."""
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    frozen = make_frozen(glacier_server, glacier_settings, tmp_path)
    tier = frozen.tier
    (tmp_path / "site").mkdir()
    site = LocalTier(tmp_path / "site")
    site.put("config", tier.get("config"))
    for prefix in ("meta/", "index/", "points/", "data/"):
        for key, _ in tier.list(prefix):
            site.put(key, tier.get(key))
    key = frozen.needed(frozen.points[0])[0]
    data = bytearray(tier.get(key))
    data[len(data) // 2] ^= 1
    tier.client.put_object(**tier.place(key), Body=bytes(data), Metadata=tier.head(key)["Metadata"])
    report = repair(frozen.repository, site, RepairRequest(deep=True))
    assert [each.key for each in report.repaired] == [key]
    assert report.after.ok
    (aside,) = (name for name, _ in tier.list("quarantine/"))
    assert tier.get(aside) == bytes(data)


def test_uploads_of_other_users_of_the_bucket_are_left_alone(glacier_settings: TierSettings, tmp_path: Path) -> None:
    bucket = glacier_settings.storage.removeprefix("s3://").partition("/")[0]
    tier = S3Tier(glacier_settings.model_copy(update={"storage": f"s3://{bucket}"}), staging=tmp_path)
    for key in ("photos/2020.tar", "data/aa/aaaa"):
        tier.client.create_multipart_upload(Bucket=bucket, Key=key)
    assert tier.clear_unfinished(-60) == ["data/aa/aaaa"]
