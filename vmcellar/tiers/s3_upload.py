"""A file to S3 in parts, several at a time; nothing is visible before the last step.

Each part has a Content-MD5, so a server refuses what was damaged on the way. An upload that fails is aborted; one whose
process died is found by `S3Tier.clear_unfinished`.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Mapping
from concurrent.futures import Executor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmcellar.errors import VmcellarError

if TYPE_CHECKING:
    from vmcellar.tiers.s3 import S3Tier

log = logging.getLogger(__name__)


def md5_of(data: bytes) -> str:
    """The Content-MD5 of a body (RFC 1864): a check of transport, not of trust."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


@dataclass(frozen=True, slots=True)
class Upload:
    """One multipart upload that has begun."""

    tier: S3Tier
    key: str
    upload_id: str

    @classmethod
    def begin(cls, tier: S3Tier, key: str, arguments: Mapping[str, Any]) -> Upload:
        """Ask the server for an upload."""
        answer = tier.ask(key, lambda: tier.client.create_multipart_upload(**tier.place(key), **arguments))
        return cls(tier, key, str(answer["UploadId"]))

    def send(self, path: Path, size: int, part: int, pool: Executor) -> list[dict[str, Any]]:
        """Send all parts; what `complete` needs. Raises the first part's error after all have stopped."""
        starts = range(0, size, part)
        sent = [pool.submit(self._send_part, path, start, part, number) for number, start in enumerate(starts, 1)]
        try:
            return [future.result() for future in sent]
        finally:
            for future in sent:
                future.cancel()
            wait(sent)

    def _send_part(self, path: Path, start: int, length: int, number: int) -> dict[str, Any]:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(length)
        digest = md5_of(data)
        answer = self.tier.ask(
            self.key,
            lambda: self.tier.client.upload_part(
                **self.tier.place(self.key), UploadId=self.upload_id, PartNumber=number, Body=data, ContentMD5=digest
            ),
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def complete(self, parts: list[dict[str, Any]], condition: Mapping[str, str]) -> None:
        """The last step: the object is there, whole."""
        self.tier.ask(
            self.key,
            lambda: self.tier.client.complete_multipart_upload(
                **self.tier.place(self.key), UploadId=self.upload_id, MultipartUpload={"Parts": parts}, **condition
            ),
        )

    def abort(self) -> None:
        """Give its parts back; what the server refuses now is cleared later."""
        with suppress(VmcellarError):
            self.tier.ask(
                self.key,
                lambda: self.tier.client.abort_multipart_upload(**self.tier.place(self.key), UploadId=self.upload_id),
            )
            return
        log.warning("%r: the upload of %s could not be aborted; gc clears it later", self.tier, self.key)
