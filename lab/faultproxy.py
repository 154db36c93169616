"""A proxy before an HTTP server that does on purpose what networks and servers do: resets, cut answers, silence,
damaged bytes, refusals. Each planned fault counts how often it fired, so that one that never came is seen.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal["status", "reset", "lost-answer", "cut", "silence", "damage-request", "damage-answer"]
_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>planned</Message></Error>"


@dataclass
class Fault:
    """What happens to the next `times` requests with this method whose path contains `path`.

    - status: answered with `status` and the S3 error `code`, and not passed on
    - reset: the connection is reset before anything is passed on
    - lost-answer: the server does what was asked, then the connection is reset
    - cut: half of the answer's body, then the end
    - silence: no answer until the client goes
    - damage-request, damage-answer: one byte of the body is another
    """

    kind: Kind
    method: str
    path: str = ""
    times: int = 1
    status: int = 503
    code: str = "SlowDown"
    fired: int = 0


@dataclass
class FaultProxy:
    """A running proxy; `plan` may grow at any time."""

    endpoint: str
    upstream: str
    plan: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def will(self, kind: Kind, method: str, **options: object) -> Fault:
        """Plan a fault."""
        fault = Fault(kind, method, **options)  # type: ignore[arg-type]  # its own fields
        self.plan.append(fault)
        return fault

    def unfired(self) -> list[Fault]:
        """Planned faults that have not come as often as planned."""
        return [fault for fault in self.plan if fault.fired != fault.times]

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for this request."""
        with self.lock:
            self.requests.append(f"{method} {path}")
            for fault in self.plan:
                if fault.method == method and fault.path in path and fault.fired < fault.times:
                    fault.fired += 1
                    return fault
        return None


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy before the server at `upstream` (http://host:port), until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    proxy = FaultProxy(f"http://127.0.0.1:{server.server_port}", upstream)
    _Handler.proxies[server.server_port] = proxy
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
        del _Handler.proxies[server.server_port]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxies: dict[int, FaultProxy] = {}  # noqa: RUF012  (shared on purpose: the handler is made anew per connection)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def _serve(self) -> None:
        proxy = self.proxies[self.server.server_address[1]]  # type: ignore[index]  # always a TCP address here
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.take(self.command, self.path)
        with suppress(ConnectionError):  # the client went first
            self._do(proxy, body, fault)

    def _do(self, proxy: FaultProxy, body: bytes, fault: Fault | None) -> None:
        kind = fault.kind if fault else None
        if fault is not None and kind == "status":
            self._answer(fault.status, {}, _ERROR.format(code=fault.code).encode())
        elif kind == "reset":
            self._reset()
        elif kind == "silence":
            self.close_connection = True
            proxy.ended.wait(30)
        else:
            status, headers, answer = self._pass_on(proxy, _damaged(body) if kind == "damage-request" else body)
            if kind == "lost-answer":
                self._reset()
            elif kind == "cut":
                self._answer(status, headers, answer, sent=len(answer) // 2)
            else:
                self._answer(status, headers, _damaged(answer) if kind == "damage-answer" else answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815  (names of http.server)

    def _pass_on(self, proxy: FaultProxy, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(urlsplit(proxy.upstream).netloc, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            kept = {n: v for n, v in answer.getheaders() if n.lower() not in ("connection", "transfer-encoding")}
            return answer.status, kept, answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, sent: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        self.close_connection = sent is not None

    def _reset(self) -> None:
        self.close_connection = True
        # Linger of 0 s: close(2) sends RST instead of FIN (socket(7)).
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _damaged(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1]) if body else body
