"""A prefix of an S3 bucket as a tier: AWS, Ceph's radosgw, or any server that speaks S3.

An object is the same file that a local tier holds, under the same key, so `aws s3 sync` of the prefix gives a directory
that vmcellar opens. What is written carries its digest and its writer's mark in the metadata: they settle whether an
object that is there after a lost answer is our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

from blake3 import blake3
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from vmcellar.config.prices import Speed
from vmcellar.config.tiers import TierSettings
from vmcellar.errors import IntegrityError, PermanentError, TransientError
from vmcellar.tiers import local_errors, s3_archive, s3_lock
from vmcellar.tiers.base import ArchiveState, ExistsError, NotFoundError, check_key, exists_error, too_short
from vmcellar.tiers.retry import Patience
from vmcellar.tiers.s3_client import make_client
from vmcellar.tiers.s3_errors import UnsupportedError, translate
from vmcellar.tiers.s3_upload import Upload, md5_of

PAGE_KEYS = 1000
PARTS_AT_ONCE = 4
"""Parts in memory at most, for all uploads of a tier."""

_DIGEST, _WRITER = "vmcellar-blake3", "vmcellar-writer"
_ONLY_NEW = {"IfNoneMatch": "*"}
_TOKENS = {
    "NextContinuationToken": "ContinuationToken",
    "NextKeyMarker": "KeyMarker",
    "NextUploadIdMarker": "UploadIdMarker",
}
_PACKS = "data/"  # the one folder that may lie in a cold class: all else is needed to plan a restore (pitfall 24)
_UPLOADED = (_PACKS, "meta/", "index/", "points/", "evidence/")  # folders of what may be longer than a part

T = TypeVar("T")


class S3Tier:
    """A tier in `s3://bucket/prefix`. The bucket must exist."""

    kind = "s3"

    def __init__(
        self, settings: TierSettings, *, name: str = "hot", staging: Path, patience: Patience | None = None
    ) -> None:
        """Connect; PermanentError when the bucket is missing or the key may not use it."""
        self.name = name
        self.settings = settings
        self.bucket, _, prefix = settings.storage.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._staging = staging
        self._patience = patience or Patience()
        self._condition: dict[str, str] = _ONLY_NEW
        self.client = make_client(settings, repr(self))
        self._still_there()
        if settings.lock is not None:
            s3_lock.check_bucket(self)

    def __repr__(self) -> str:
        return f"tier {self.name} (s3://{self.bucket}/{self.prefix.rstrip('/')})"

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix=f"s3-{self.name}")

    def place(self, key: str) -> dict[str, str]:
        """The arguments of boto3 that say where an object is."""
        return {"Bucket": self.bucket, "Key": self.prefix + check_key(key)}

    def key_of(self, name: str) -> str:
        """The object's key from its name in the bucket."""
        return name.removeprefix(self.prefix)

    def ask(self, key: str, request: Callable[[], T], *, certain: bool = True) -> T:
        """Make a request with retries and our errors. A missing object in a missing bucket is a missing bucket; if that
        must be `certain`, the bucket is asked for, else a request that follows will say so.
        """
        what = f"{self!r}: {key}" if key else repr(self)

        def once() -> T:
            try:
                return request()
            except (ClientError, BotoCoreError, HTTPError, OSError) as error:
                raise translate(error, what) from error

        try:
            return self._patience(once)
        except NotFoundError:
            if certain:
                self._still_there()
            raise

    def _still_there(self) -> None:
        """HEAD of an object answers the same 404 whether the object or the whole bucket is gone (pitfall 20)."""

        def once() -> None:
            try:
                self.client.head_bucket(Bucket=self.bucket)
            except (ClientError, BotoCoreError, HTTPError, OSError) as error:
                raise translate(error, repr(self)) from error

        try:
            self._patience(once)
        except NotFoundError as error:
            raise PermanentError(
                f"{self!r}: there is no bucket {self.bucket}",
                hint=f"make it (aws s3 mb s3://{self.bucket}), or name the right one under tiers: in vmcellar.yaml",
            ) from error

    def staging_dir(self) -> Path:
        """A folder of this host; `adopt` uploads from anywhere at the same cost."""
        try:
            self._staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise local_errors.translate(error, f"{self!r}: staging folder {self._staging}") from error
        return self._staging

    def put(self, key: str, data: bytes) -> None:
        """See Tier.put."""
        writer = uuid4().hex
        self._put(key, data, {_DIGEST: blake3(data).hexdigest(), _WRITER: writer})

    def adopt(self, path: Path, key: str) -> None:
        """See Tier.adopt. From two parts up in parts, `PARTS_AT_ONCE` at a time."""
        self.place(key)
        try:
            size = path.stat().st_size
            digest = blake3(max_threads=1).update_mmap(path).hexdigest()
        except OSError as error:
            raise local_errors.translate(error, f"{self!r}: {key} from {path}") from error
        marks = {_DIGEST: digest, _WRITER: digest}
        if size <= self.settings.part:
            self._put(key, path.read_bytes(), marks)
        else:
            self._upload(path, size, key, marks)
        path.unlink()

    def _put(self, key: str, data: bytes, marks: dict[str, str]) -> None:
        if self._is_ours(key, marks):
            return
        arguments = {"Body": data, "ContentMD5": md5_of(data), **self._arguments(key, marks)}
        try:
            self.ask(key, lambda: self.client.put_object(**self.place(key), **arguments, **self._condition))
        except ExistsError:
            if not self._is_ours(key, marks):
                raise
        except UnsupportedError:
            if not self._condition:
                raise
            self._condition = {}  # a server without conditional puts: that the key was free a moment ago must do
            self._put(key, data, marks)

    def _upload(self, path: Path, size: int, key: str, marks: dict[str, str]) -> None:
        if self._is_ours(key, marks):
            return
        upload = Upload.begin(self, key, self._arguments(key, marks))
        try:
            parts = upload.send(path, size, self.settings.part, self._pool)
            upload.complete(parts, self._condition)
        except (ExistsError, NotFoundError):  # or an answer was lost, and the upload had ended
            if not self._is_ours(key, marks):
                upload.abort()
                raise
        except BaseException:
            upload.abort()
            raise
        if lock := s3_lock.arguments(self.settings.lock, key):  # radosgw 16 drops what the upload's begin said of it
            self.lock_until([key], lock["ObjectLockRetainUntilDate"].timestamp() - 1)

    def _arguments(self, key: str, marks: dict[str, str]) -> dict[str, Any]:
        cold = {"StorageClass": self.settings.storage_class} if self.settings.storage_class else {}
        lock = s3_lock.arguments(self.settings.lock, key)
        return {"Metadata": marks, **(cold if key.startswith(_PACKS) else {}), **lock}

    def _is_ours(self, key: str, marks: dict[str, str]) -> bool:
        """Whether the object is there and our own; ExistsError when it is another's. A write follows if it is not."""
        try:
            found = self.head(key, certain=False)
        except NotFoundError:
            return False
        if found["Metadata"].get(_WRITER) != marks[_WRITER]:
            raise exists_error(self, key)
        return True

    def head(self, key: str, *, certain: bool = True) -> dict[str, Any]:
        """What S3 says of an object."""
        found: dict[str, Any] = self.ask(key, lambda: self.client.head_object(**self.place(key)), certain=certain)
        return found

    def get(self, key: str) -> bytes:
        """See Tier.get. IntegrityError when the bytes are not those whose digest was stored beside them."""

        def whole() -> tuple[bytes, dict[str, str]]:
            answer = self.client.get_object(**self.place(key))
            with answer["Body"] as body:
                return body.read(), answer["Metadata"]

        data, marks = self.ask(key, whole)
        if blake3(data).hexdigest() != marks.get(_DIGEST, blake3(data).hexdigest()):
            raise IntegrityError(
                f"{self!r}: {key} is not what was written",
                hint="type `vmcellar verify --all` to see which points it touches",
            )
        return data

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See Tier.read."""
        with self.open(key) as reader:
            buffer = bytearray(length)
            reader.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def open(self, key: str) -> S3Reader:
        """See Tier.open: one request for the size, then one for each read."""
        return S3Reader(self, key, self.size(key))

    def size(self, key: str) -> int:
        """See Tier.size."""
        return int(self.head(key)["ContentLength"])

    def stored_digest(self, key: str) -> str | None:
        """See KeepsDigests. The server compared every byte of the upload with its Content-MD5."""
        marks: dict[str, str] = self.head(key)["Metadata"]
        return marks.get(_DIGEST)

    def exists(self, key: str) -> bool:
        """See Tier.exists."""
        try:
            self.head(key)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See Tier.list."""
        last = ""
        for found in self._pages("list_objects_v2", prefix, "Contents"):
            key = str(found["Key"])
            if key <= last:
                raise PermanentError(f"{self!r}: lists {key} after {last}: this listing cannot be trusted")
            last = key
            yield key.removeprefix(self.prefix), int(found["Size"])

    def _pages(self, method: str, prefix: str, part: str) -> Iterator[dict[str, Any]]:
        """What a listing holds, page by page; a page that does not say where the next begins is an error."""
        where: dict[str, str] = {}
        while True:
            page = self._page(method, prefix, where)
            yield from page.get(part, [])
            if not page.get("IsTruncated"):
                return
            where = {name: page[token] for token, name in _TOKENS.items() if page.get(token)}
            if not where:
                raise TransientError(f"{self!r}: the listing of {prefix} broke off", hint="repeat the command")

    def _page(self, method: str, prefix: str, where: dict[str, str]) -> dict[str, Any]:
        request = getattr(self.client, method)
        most = {"MaxUploads" if method == "list_multipart_uploads" else "MaxKeys": PAGE_KEYS}
        page: dict[str, Any] = self.ask(
            prefix, lambda: request(Bucket=self.bucket, Prefix=self.prefix + prefix, **most, **where)
        )
        return page

    def delete(self, key: str) -> None:
        """See Tier.delete, and Locks. S3 itself says nothing of an object that was not there."""
        head = self.head(key)
        if self.settings.lock is not None:
            s3_lock.delete(self, key, head)
            return
        self.ask(key, lambda: self.client.delete_object(**self.place(key)))

    @property
    def lock_keep(self) -> float | None:
        """See Locks.lock_keep."""
        return self.settings.lock_keep

    def locked_until(self, keys: Iterable[str]) -> Mapping[str, float]:
        """See Locks.locked_until. One request per object, many at once."""
        return s3_lock.locked_until(self, keys)

    def lock_until(self, keys: Iterable[str], until: float) -> None:
        """See Locks.lock_until."""
        s3_lock.lock_until(self, keys, until)

    def hidden(self, *, keys: bool = False) -> Sequence[str]:
        """See Locks.hidden."""
        return s3_lock.hidden(self, keys=keys)

    def undelete(self, keys: Iterable[str]) -> None:
        """See Locks.undelete."""
        s3_lock.undelete(self, keys)

    def attack(self, key: str) -> str:
        """See Locks.attack."""
        return s3_lock.attack(self, key)

    def thaw_state(self, keys: Iterable[str]) -> Mapping[str, ArchiveState]:
        """See Archive.thaw_state. One request per object, many at once."""
        return s3_archive.states(self, keys)

    def thaw(self, keys: Iterable[str], days: int, speed: Speed) -> None:
        """See Archive.thaw. One request per object, many at once."""
        s3_archive.thaw(self, keys, days, speed)

    def free_bytes(self) -> int | None:
        """S3 does not tell."""
        return None

    def describe(self) -> str:
        """Bucket, server and class of packs."""
        self._still_there()
        server = self.settings.endpoint or f"AWS, {self.client.meta.region_name}"
        kept = self.settings.storage_class or "the server's default class"
        return f"s3://{self.bucket}/{self.prefix.rstrip('/')} at {server}, packs in {kept}"

    def clear_unfinished(self, older_than: float) -> Sequence[str]:
        """See Tier.clear_unfinished: multipart uploads below our own folders, as a bucket may have other users; their
        age is by the server's clock.
        """
        now = self._server_time()
        cleared = []
        uploads = [found for folder in _UPLOADED for found in self._pages("list_multipart_uploads", folder, "Uploads")]
        for found in uploads:
            if (now - found["Initiated"]).total_seconds() > older_than:
                key = str(found["Key"]).removeprefix(self.prefix)
                Upload(self, key, str(found["UploadId"])).abort()
                cleared.append(key)
        return cleared

    def _server_time(self) -> datetime:
        """The server's clock, so that a wrong one here takes nothing from a writer that lives."""
        answer = self.ask("", lambda: self.client.head_bucket(Bucket=self.bucket))
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])


class S3Reader:
    """One object for many reads: each is a request of its own, any number at once."""

    def __init__(self, tier: S3Tier, key: str, size: int) -> None:
        self._tier, self._key = tier, key
        self.size = size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See TierReader.read_into."""
        if offset + len(buffer) > self.size:
            raise too_short(self._tier, self._key, offset, len(buffer))
        if len(buffer):
            self._tier.ask(self._key, lambda: self._fill(offset, buffer))

    def _fill(self, offset: int, buffer: memoryview) -> None:
        wanted = f"bytes={offset}-{offset + len(buffer) - 1}"
        answer = self._tier.client.get_object(**self._tier.place(self._key), Range=wanted)
        done = 0
        with answer["Body"] as body:
            while done < len(buffer):
                data = body.read(len(buffer) - done)
                if not data:
                    raise TransientError(f"{self._tier!r}: {self._key}: the answer broke off at {offset + done}")
                buffer[done : done + len(data)] = data
                done += len(data)

    def close(self) -> None:
        """Nothing is held between reads."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
