"""The program of `lab.glacier`: moto's S3 server, and what moto's archive classes lack of Amazon's.

What is put right, after the S3 API reference (RestoreObject) and the user guide ("Archive retrieval options"): delays
by class and retrieval tier, no expedited retrieval from DEEP_ARCHIVE, 409 for a second request while one runs unless it
is a faster one, the end of a thawed copy at a midnight (UTC), and a clock that stands until it is moved.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs
from xml.etree import ElementTree as ET

import moto.core
import moto.s3.models
from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

NAME = "vmcellar-lab stand-in for S3 Glacier (moto)"
CONTROL = "/_lab"
HOUR = 3600
DELAYS = {
    "GLACIER": {"Expedited": HOUR // 12, "Standard": 5 * HOUR, "Bulk": 12 * HOUR},
    "DEEP_ARCHIVE": {"Standard": 12 * HOUR, "Bulk": 48 * HOUR},
}
"""Seconds until an object can be read: the ends of the ranges that AWS names."""

_core: Any = moto.core  # what is mended below is no interface of moto's, so types say nothing about it
_s3: Any = moto.s3.models

Start = Callable[[str, list[tuple[str, str]]], object]


@dataclass(frozen=True, slots=True)
class Request:
    """One accepted request to thaw an object."""

    bucket: str
    key: str
    storage_class: str
    tier: str
    days: int
    size: int


class Clock:
    """The server's time: it stands until it is moved. Seconds since 1970."""

    def __init__(self, now: float) -> None:
        self.now = now

    def utcnow(self) -> datetime:
        """As moto keeps times: UTC, without a zone."""
        return datetime.fromtimestamp(self.now, UTC).replace(tzinfo=None)


class Archive:
    """The WSGI application: requests to thaw and the laboratory's own are answered here, all others by moto."""

    def __init__(self, now: float) -> None:
        self.clock = Clock(now)
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._moto: Any = create_backend_app("s3")
        self._mend_moto()

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        if environ["PATH_INFO"].startswith(CONTROL):
            return self._control(environ, query, start)
        if environ["REQUEST_METHOD"] == "POST" and "restore" in query:
            with self._lock:
                return self._thaw(environ, start)
        answer: Iterable[bytes] = self._moto(environ, start)
        return answer

    def _mend_moto(self) -> None:
        clock = self.clock
        described = _s3.FakeKey.response_dict.fget

        def response_dict(key: Any) -> Any:
            if key._expiry is not None and key._expiry <= clock.utcnow():
                key._expiry = None
            return described(key)

        def status(key: Any) -> str:
            return "IN_PROGRESS" if getattr(key, "lab_ready", datetime.min) > clock.utcnow() else "RESTORED"  # noqa: DTZ901

        _s3.FakeKey.response_dict = property(response_dict)
        _s3.FakeKey.status = property(status, lambda _key, _status: None)
        _s3.utcnow = clock.utcnow

    def _control(self, environ: dict[str, Any], query: dict[str, list[str]], start: Start) -> list[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            self.clock.now += float(query["seconds"][0])
        state = {"name": NAME, "now": self.clock.now, "requests": [asdict(request) for request in self.requests]}
        return _answer(start, "200 OK", json.dumps(state), "application/json")

    def _thaw(self, environ: dict[str, Any], start: Start) -> list[bytes]:
        _, bucket, name = environ["PATH_INFO"].split("/", 2)
        try:
            key = _s3.s3_backends[_core.DEFAULT_ACCOUNT_ID]["aws"].get_object(bucket, name)
        except _s3.MissingBucket:
            return _error(start, "404 Not Found", "NoSuchBucket")
        if key is None:
            return _error(start, "404 Not Found", "NoSuchKey")
        days, tier = _wanted(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        delays = DELAYS.get(key.storage_class)
        if delays is None:
            return _error(start, "403 Forbidden", "InvalidObjectState")
        if tier not in delays or days < 1:
            return _error(start, "400 Bad Request", "InvalidArgument")
        return self._begin(key, Request(bucket, name, key.storage_class, tier, days, key.size), start)

    def _begin(self, key: Any, request: Request, start: Start) -> list[bytes]:
        now = self.clock.utcnow()
        ready = now + timedelta(seconds=DELAYS[request.storage_class][request.tier])
        thawed = "x-amz-restore" in key.response_dict
        running = thawed and key.status == "IN_PROGRESS"
        if running and ready >= key.lab_ready:
            return _error(start, "409 Conflict", "RestoreAlreadyInProgress")
        if not thawed or running:
            key.lab_ready = ready
        key._expiry = _midnight_after(max(key.lab_ready, now) + timedelta(days=request.days))
        self.requests.append(request)
        return _answer(start, "200 OK" if thawed and not running else "202 Accepted", "", "application/xml")


def _wanted(body: bytes) -> tuple[int, str]:
    """(days, retrieval tier) of a request to thaw."""
    found = {element.tag.rpartition("}")[2]: element.text or "" for element in ET.fromstring(body).iter()}
    return int(found.get("Days") or 0), found.get("Tier") or "Standard"


def _midnight_after(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def _error(start: Start, status: str, code: str) -> list[bytes]:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{NAME}</Message></Error>"
    return _answer(start, status, body, "application/xml")


def _answer(start: Start, status: str, body: str, kind: str) -> list[bytes]:
    data = body.encode()
    start(status, [("Content-Type", kind), ("Content-Length", str(len(data)))])
    return [data]


class _Handler(MotoRequestHandler):
    server_version = NAME
    sys_version = ""
    protocol_version = "HTTP/1.1"


def main() -> None:
    """Serve on a port of loopback from a moment on: `python -m lab.glacier_server PORT SECONDS`."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", int(sys.argv[1]), Archive(float(sys.argv[2])), True, request_handler=_Handler)
    server.serve_forever()


if __name__ == "__main__":
    main()
