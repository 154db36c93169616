"""From what boto3 raises to the error tree.

Sources: the S3 API reference, "Error responses"; botocore's exceptions. Names of servers other than AWS's are in the
same tables where they were seen: radosgw leaves messages empty and answers QuotaExceeded, MinIO XMinioStorageFull.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from botocore import exceptions as boto

from vmcellar.errors import PermanentError, TransientError, VmcellarError
from vmcellar.tiers.base import ArchivedError, ExistsError, NotFoundError

SKEW_MAX = timedelta(minutes=15)
"""By how much a request's time may differ from the server's; S3 API reference, RequestTimeTooSkewed."""
_CLOCK = "this host's clock and the server's differ by more than 15 minutes: `timedatectl`, or apt install chrony"
_KEYS = "check access_key, secret_key or profile of the tier, then type `vmcellar doctor`"
_RENEW = "the credentials' time is over: renew them (aws sso login, or a new key), then repeat the command"
_THAW = "`vmcellar thaw POINT` asks for it; `vmcellar restore POINT --plan` says first what that costs and takes"
_ROOM = "raise the quota or prune old points (`vmcellar prune`), then run the backup again"
_RIGHTS = (
    "let this key list, get, put and delete in the bucket (its policy), or renew it if it is a session's whose time is "
    "over, which radosgw answers with the same; then type `vmcellar doctor`"
)
_PERMANENT = {
    "AccessDenied": _RIGHTS,
    "AllAccessDisabled": "the account may not be used: ask its owner",
    "AccountProblem": "the account may not be used: ask its owner",
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "AuthorizationHeaderMalformed": "set `region:` of the tier to the bucket's region",
    "PermanentRedirect": "set `endpoint:` or `region:` of the tier to the bucket's own",
    "ExpiredToken": _RENEW,
    "ExpiredTokenException": _RENEW,
    "TokenRefreshRequired": _RENEW,
    "InvalidToken": _RENEW,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "NoSuchBucket": "make the bucket, or name the right one under tiers: in vmcellar.yaml",
    "QuotaExceeded": _ROOM,
    "XMinioStorageFull": _ROOM,
    "GlacierExpeditedRetrievalNotAvailable": "there is no room for expedited thaws now: take `--speed standard`",
    "InvalidStorageClass": "name a storage_class that the server has",
    "EntityTooLarge": "the server takes no object of this size",
    "MethodNotAllowed": "the object is locked or the server lacks this function of S3",
}
_TRANSIENT = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentSHA256Mismatch",
    }
)
_MISSING = frozenset({"NoSuchKey", "404", "NotFound", "NoSuchUpload"})
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.ProfileNotFound,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
)


class UnsupportedError(PermanentError):
    """The server lacks what was asked for."""


class ThawingError(PermanentError):
    """The object is being thawed already, at this speed or a faster one."""


def translate(error: Exception, what: str) -> VmcellarError:
    """The error of our tree for one of boto3's; `what` names tier and object."""
    if isinstance(error, boto.ClientError):
        return _answered(error.response, what)
    if isinstance(error, _NO_CREDENTIALS):
        return PermanentError(f"{what}: {error}", hint="set access_key and secret_key, or profile, of the tier")
    if isinstance(error, boto.SSLError):
        hint = "name the authority's file in `ca:` of the tier, or mend the server's certificate"
        return PermanentError(f"{what}: {error}", hint=hint)
    if isinstance(error, boto.ParamValidationError | boto.InvalidEndpointDiscoveryConfigurationError):
        return PermanentError(f"{what}: {error}", hint="check the tier's options in vmcellar.yaml")
    return TransientError(f"{what}: {error}", hint="check that the server is up and reachable: `vmcellar doctor`")


def _answered(response: dict[str, Any], what: str) -> VmcellarError:
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "403" and _clocks_differ(response):
        code = "RequestTimeTooSkewed"
    said = str(response.get("Error", {}).get("Message", "") or "no message").rstrip(".")
    text = f"{what}: {said} ({code or status})"
    return _about_the_object(code, what) or _about_the_request(code, status, text)


def _clocks_differ(response: dict[str, Any]) -> bool:
    """Whether that is why a request was refused. The answer to HEAD has no body that could say so, only its date."""
    date = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        return abs(parsedate_to_datetime(date) - _now()) > SKEW_MAX
    except (TypeError, ValueError):
        return False


def _now() -> datetime:
    return datetime.now(UTC)


def _about_the_object(code: str, what: str) -> VmcellarError | None:
    if code in _MISSING:
        return NotFoundError(f"{what}: no such object", hint="type `vmcellar verify --all` to see what it touches")
    if code in ("PreconditionFailed", "412"):
        return ExistsError(f"{what} exists already", hint="objects are never overwritten; choose a new name")
    if code in ("InvalidObjectState", "ObjectNotInActiveTierError"):
        return ArchivedError(f"{what} lies in an archive class and is not thawed", hint=_THAW)
    if code == "RestoreAlreadyInProgress":
        return ThawingError(f"{what} is being thawed already", hint="`vmcellar thaw --status` says when it is done")
    return None


def _about_the_request(code: str, status: int, text: str) -> VmcellarError:
    if code == "NotImplemented":
        return UnsupportedError(text, hint="the server lacks this function of S3")
    if status == HTTPStatus.INSUFFICIENT_STORAGE:
        return PermanentError(text, hint=_ROOM)
    if code in _PERMANENT:
        return PermanentError(text, hint=_PERMANENT[code])
    if code in _TRANSIENT or status in (408, 429) or status >= 500:
        return TransientError(text, hint="the server is busy or failing: try again later")
    return PermanentError(text, hint=_PERMANENT["AccessDenied"] if status in (401, 403) else "see the server's log")
