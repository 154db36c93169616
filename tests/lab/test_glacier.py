"""The stand-in for Glacier does what Amazon documents, so that tests against it mean something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from lab.glacier import ACCESS, SECRET, Glacier
from lab.require import requires

NOON = 1_767_268_800.0
"""2026-01-01 12:00 UTC."""


@pytest.fixture(scope="module")
def glacier() -> Iterator[Glacier]:
    requires("glacier")
    server = Glacier.start(NOON)
    server.make_bucket("lab")
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def s3(glacier: Glacier) -> Iterator[Any]:
    client = boto3.client(
        "s3", endpoint_url=glacier.endpoint, region_name="us-east-1",
        aws_access_key_id=ACCESS, aws_secret_access_key=SECRET, config=Config(retries={"total_max_attempts": 1}),
    )  # fmt: skip
    yield client
    client.close()


@pytest.fixture
def put(s3: Any) -> Callable[..., str]:
    def make(name: str, storage_class: str) -> str:
        s3.put_object(Bucket="lab", Key=name, Body=b"cold", StorageClass=storage_class)
        return name

    return make


def thaw(s3: Any, key: str, tier: str = "Standard", days: int = 1) -> int:
    wanted = {"Days": days, "GlacierJobParameters": {"Tier": tier}}
    answer = s3.restore_object(Bucket="lab", Key=key, RestoreRequest=wanted)
    return int(answer["ResponseMetadata"]["HTTPStatusCode"])


def state(s3: Any, key: str) -> str:
    return str(s3.head_object(Bucket="lab", Key=key).get("Restore", ""))


def refusal(call: Callable[..., Any], *arguments: Any, **more: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as raised:
        call(*arguments, **more)
    answer = raised.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def read(s3: Any, key: str) -> bytes:
    with s3.get_object(Bucket="lab", Key=key)["Body"] as body:
        data: bytes = body.read()
    return data


@pytest.mark.parametrize(
    ("storage_class", "tier", "hours"),
    [
        ("GLACIER", "Expedited", 1 / 12),
        ("GLACIER", "Standard", 5),
        ("GLACIER", "Bulk", 12),
        ("DEEP_ARCHIVE", "Standard", 12),
        ("DEEP_ARCHIVE", "Bulk", 48),
    ],
)
def test_a_thaw_takes_its_time(
    glacier: Glacier, s3: Any, put: Callable[..., str], storage_class: str, tier: str, hours: float
) -> None:
    key = put(f"{storage_class}-{tier}", storage_class)
    assert refusal(read, s3, key) == (403, "InvalidObjectState")
    assert state(s3, key) == ""
    assert thaw(s3, key, tier) == 202
    glacier.advance(hours=hours - 0.01)
    assert state(s3, key) == 'ongoing-request="true"'
    assert refusal(read, s3, key) == (403, "InvalidObjectState")
    glacier.advance(hours=0.02)
    assert 'ongoing-request="false"' in state(s3, key)
    assert read(s3, key) == b"cold"


def test_a_thaw_ends_at_a_midnight(glacier: Glacier, s3: Any, put: Callable[..., str]) -> None:
    key = put("ends", "GLACIER")
    assert thaw(s3, key, days=2) == 202
    glacier.advance(hours=6)
    assert state(s3, key).endswith('00:00:00 GMT"')
    glacier.advance(days=2)
    assert read(s3, key) == b"cold"
    glacier.advance(days=1)
    assert refusal(read, s3, key) == (403, "InvalidObjectState")
    assert state(s3, key) == ""
    assert thaw(s3, key) == 202


def test_a_second_request_is_a_conflict_unless_it_is_faster(glacier: Glacier, s3: Any, put: Callable[..., str]) -> None:
    key = put("twice", "GLACIER")
    assert thaw(s3, key, "Bulk") == 202
    assert refusal(thaw, s3, key, "Bulk") == (409, "RestoreAlreadyInProgress")
    assert thaw(s3, key, "Standard") == 202
    glacier.advance(hours=5.1)
    assert read(s3, key) == b"cold"
    until = state(s3, key)
    assert thaw(s3, key, days=9) == 200
    assert state(s3, key) != until


def test_what_amazon_refuses_is_refused(glacier: Glacier, s3: Any, put: Callable[..., str]) -> None:
    deep, instant, plain = put("deep", "DEEP_ARCHIVE"), put("instant", "GLACIER_IR"), put("plain", "STANDARD")
    assert refusal(thaw, s3, deep, "Expedited") == (400, "InvalidArgument")
    assert refusal(thaw, s3, instant) == (403, "InvalidObjectState")
    assert refusal(thaw, s3, plain) == (403, "InvalidObjectState")
    assert refusal(thaw, s3, "no such") == (404, "NoSuchKey")
    assert (read(s3, instant), read(s3, plain)) == (b"cold", b"cold")
    copy = {"Bucket": "lab", "Key": deep}
    assert refusal(s3.copy_object, Bucket="lab", Key="copy", CopySource=copy)[1] == "ObjectNotInActiveTierError"
    assert "DEEP_ARCHIVE" not in {request["storage_class"] for request in glacier.requests if request["key"] == deep}


def test_its_clock_is_the_objects_clock_and_stands(glacier: Glacier, s3: Any, put: Callable[..., str]) -> None:
    first = glacier.now
    put("dated", "STANDARD")
    assert s3.head_object(Bucket="lab", Key="dated")["LastModified"].timestamp() == int(first)
    assert glacier.now == first


def test_it_says_what_it_is(s3: Any) -> None:
    headers = s3.list_objects_v2(Bucket="lab")["ResponseMetadata"]["HTTPHeaders"]
    assert "stand-in" in headers["server"]
