"""A proxy before an S3 server that goes wrong by rules, and counts how often.

Requests are passed on as they came, with their Host header, so that signatures stay good: clients
only need the proxy's address as their endpoint.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit

Fault = Literal[
    "slow_down",  # 503, as S3 answers when too much is asked of it
    "server_error",  # 500
    "reset",  # the connection ends before an answer
    "lost_answer",  # the request is carried out, and then the connection ends
    "cut",  # the connection ends in the middle of the answer's body
    "stall",  # no answer, until the client gives up
    "drip",  # the answer's body comes a few bytes at a time
    "throttle",  # the request's body is taken a few KiB at a time
    "forbidden",  # 403
    "gone",  # 404, though the object was listed
]
_ERRORS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "server_error": (500, "InternalError", "We encountered an internal error."),
    "forbidden": (403, "AccessDenied", "Access Denied"),
    "gone": (404, "NoSuchKey", "The specified key does not exist."),
}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
_PAUSE_S = 0.02


@dataclass
class Rule:
    """Which requests meet a fault: by method and path, a share of them, so many of them.

    `key` is searched in `/bucket/key`. The first `after` matching requests pass; `times` then meet
    the fault (all of them if None), each with probability `share`.
    """

    fault: Fault
    methods: str = "GET HEAD PUT POST DELETE"
    key: str = ""
    share: float = 1.0
    after: int = 0
    times: int | None = None
    bytes_at_once: int = 64
    seen: int = field(default=0, init=False)
    struck: int = field(default=0, init=False)

    def strikes(self, method: str, path: str, chance: random.Random) -> bool:
        """Whether this request meets the fault; counts it."""
        if method not in self.methods.split() or not re.search(self.key, path):
            return False
        self.seen += 1
        spent = self.times is not None and self.struck >= self.times
        if self.seen <= self.after or spent or chance.random() >= self.share:
            return False
        self.struck += 1
        return True


class Proxy:
    """Runs while inside a `with` block; `url` is what clients take for the server."""

    def __init__(self, upstream: str, rules: list[Rule] | None = None, seed: int = 0) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.outcomes: Counter[str] = Counter()
        self._rules = list(rules or ())
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler, self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def set_rules(self, *rules: Rule) -> None:
        """From now on these, in place of those before; the first that strikes counts."""
        with self._lock:
            self._rules = list(rules)

    @contextlib.contextmanager
    def broken(self, *rules: Rule) -> Iterator[None]:
        """These rules while inside, and none after."""
        self.set_rules(*rules)
        try:
            yield
        finally:
            self.set_rules()

    def choose(self, method: str, path: str) -> Rule | None:
        """The rule that strikes this request, if one does."""
        with self._lock:
            rules = iter(self._rules)
            rule = next((r for r in rules if r.strikes(method, path, self._chance)), None)
            self.outcomes["passed" if rule is None else rule.fault] += 1
            return rule

    def pause(self) -> None:
        """Between two pieces of a slow transfer; none any more when the proxy stops."""
        self._stopping.wait(_PAUSE_S)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type, proxy: Proxy) -> None:
        super().__init__(address, handler)
        self.proxy = proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are gone are what this is about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: outcomes are counted."""

    def _serve(self) -> None:
        proxy = self.server.proxy
        rule = proxy.choose(self.command, unquote(urlsplit(self.path).path))
        fault = rule.fault if rule else None
        size = int(self.headers.get("Content-Length") or 0)
        assert "chunked" not in self.headers.get("Transfer-Encoding", "")
        body = self._take(size, rule.bytes_at_once if rule and fault == "throttle" else size)
        if fault == "reset":
            self._reset()
        elif fault == "stall":
            self.connection.recv(1)
            self.close_connection = True
        elif fault in _ERRORS:
            self._refuse(*_ERRORS[fault])
        else:
            status, headers, data = self._ask_upstream(body)
            if fault == "lost_answer":
                self._reset()
            else:
                self._answer(status, headers, data, rule)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _take(self, size: int, at_once: int) -> bytes:
        pieces = []
        while size:
            pieces.append(self.rfile.read(min(size, at_once)))
            size -= len(pieces[-1])
            if size:
                self.server.proxy.pause()
        return b"".join(pieces)

    def _ask_upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.proxy.upstream)
        with contextlib.closing(connection):
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, rule: Rule | None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        # A HEAD has the length of what a GET would bring.
        self.send_header(
            "Content-Length", lengths[0] if self.command == "HEAD" and lengths else str(len(data))
        )
        self.end_headers()
        if rule and rule.fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self._reset()
        elif rule and rule.fault == "drip":
            for start in range(0, len(data), rule.bytes_at_once):
                self.wfile.write(data[start : start + rule.bytes_at_once])
                self.server.proxy.pause()
        else:
            self.wfile.write(data)

    def _refuse(self, status: int, code: str, message: str) -> None:
        document = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        ).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(document)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(document)

    def _reset(self) -> None:
        """End the connection at once, as a failed machine does (RST, no FIN)."""
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
