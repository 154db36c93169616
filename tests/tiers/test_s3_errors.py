"""Each answer of an S3 server has its class in the error tree, and a next step."""

from __future__ import annotations

import pytest
from botocore import exceptions as boto

from vmcellar.errors import PermanentError, TransientError, VmcellarError
from vmcellar.tiers.base import ArchivedError, ExistsError, NotFoundError
from vmcellar.tiers.retry import Patience
from vmcellar.tiers.s3_errors import UnsupportedError, translate


def answer(code: str, status: int, message: str = "said") -> boto.ClientError:
    return boto.ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item,unused-ignore]
        "GetObject",
    )


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (answer("SlowDown", 503), TransientError, "later"),
        (answer("InternalError", 500), TransientError, "later"),
        (answer("", 502), TransientError, "later"),
        (answer("TooManyRequests", 429), TransientError, "later"),
        (answer("BadDigest", 400), TransientError, "later"),
        (boto.EndpointConnectionError(endpoint_url="http://x"), TransientError, "doctor"),
        (boto.ConnectionClosedError(endpoint_url="http://x"), TransientError, "doctor"),
        (boto.ReadTimeoutError(endpoint_url="http://x"), TransientError, "doctor"),
        (ConnectionResetError(104, "reset"), TransientError, "doctor"),
        (answer("ExpiredToken", 400), PermanentError, "renew"),
        (answer("RequestTimeTooSkewed", 403), PermanentError, "chrony"),
        (answer("SignatureDoesNotMatch", 403), PermanentError, "secret_key"),
        (answer("InvalidAccessKeyId", 403), PermanentError, "access_key"),
        (answer("AccessDenied", 403), PermanentError, "policy"),
        (answer("403", 403), PermanentError, "policy"),
        (answer("QuotaExceeded", 403, ""), PermanentError, "quota"),
        (answer("", 507), PermanentError, "quota"),
        (answer("NoSuchBucket", 404), PermanentError, "bucket"),
        (boto.NoCredentialsError(), PermanentError, "access_key"),
        (boto.ProfileNotFound(profile="x"), PermanentError, "profile"),
        (boto.SSLError(endpoint_url="https://x", error="bad"), PermanentError, "ca:"),
        (answer("NoSuchKey", 404), NotFoundError, "verify"),
        (answer("404", 404), NotFoundError, "verify"),
        (answer("PreconditionFailed", 412), ExistsError, "never overwritten"),
        (answer("NotImplemented", 501), UnsupportedError, "lacks"),
        (answer("InvalidObjectState", 403), ArchivedError, ""),
    ],
)
def test_classes(error: Exception, kind: type[VmcellarError], hint: str) -> None:
    found = translate(error, "tier hot: points/one")
    assert type(found) is kind
    assert found.message.startswith("tier hot: points/one")
    assert hint in found.hint


def test_what_may_pass_is_tried_again_and_nothing_else() -> None:
    calls = 0

    def failing(error: Exception, times: int) -> str:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error
        return "done"

    patience = Patience(attempts=4, pause=0)
    assert patience(lambda: failing(TransientError("busy"), 3)) == "done"
    assert calls == 4
    calls = 0
    with pytest.raises(TransientError, match="busy"):
        patience(lambda: failing(TransientError("busy"), 9))
    assert calls == 4
    calls = 0
    with pytest.raises(PermanentError, match="full"):
        patience(lambda: failing(PermanentError("full"), 1))
    assert calls == 1
