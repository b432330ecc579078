"""An S3 server on this machine, moto's, behind a proxy that is slow, refuses, breaks connections, and counts.

moto looks whether an object exists and writes it in two steps: of two conditional requests at once both could succeed,
which S3 rules out. The proxy lets one such request per object through at a time.
"""

from __future__ import annotations

import http.client
import importlib.util
import logging
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from raymae.storage.folder import Folder

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}
PIECE = 1 << 17
"""Bytes that are sent at once where a connection's rate is limited."""


@dataclass(frozen=True)
class Refusal:
    """An error as S3 answers it."""

    status: int
    code: str
    message: str
    methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
    """The requests that it meets."""
    header: str = ""
    """A header that they have; empty: any."""

    @property
    def body(self) -> bytes:
        """The answer's XML."""
        return f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>{self.message}</Message></Error>".encode()


REFUSALS = {
    "503": Refusal(503, "SlowDown", "Reduce your request rate."),
    "403": Refusal(403, "AccessDenied", "Access Denied"),
    "quota": Refusal(507, "QuotaExceeded", "The quota of the bucket is used up.", ("PUT", "POST")),
    "too large": Refusal(400, "EntityTooLarge", "Your proposed upload exceeds the maximum size.", ("PUT", "POST")),
    "501": Refusal(501, "NotImplemented", "Transfering in chunks is not supported.", ("PUT", "POST")),
    # as OpenStack Swift answers
    "condition": Refusal(501, "NotImplemented", "Conditional PUTs are not supported.", ("PUT",), "If-None-Match"),
    "removal": Refusal(400, "InvalidRequest", "Missing required header for this request: Content-MD5", ("POST",)),
}
"""What `S3.fault` may name beside "reset"."""


@dataclass
class S3:
    """The server's address, what the proxy does to requests, and what it has seen."""

    url: str
    seconds: float = 0.0
    """Added to every request."""
    rate: float = 0.0
    """Most bytes per second of a connection; 0: no limit."""
    late_every: int = 0
    """Every so many reads one is late by `late_seconds`; 0: none."""
    late_seconds: float = 2.0
    fault: str = ""
    """One of `REFUSALS`: requests are refused; "reset": connections are broken after requests were carried out."""
    failed: int = 0
    """How many requests the fault has met."""
    requests: list[str] = field(default_factory=list)
    """Method and path of every request."""
    reads: int = 0
    """How many requests asked for an object's content, or a part of it."""
    sent: int = 0
    """Bytes of their answers."""

    def folder(self, path: str) -> Folder:
        """A folder of its bucket."""
        return Folder(f"s3://bucket/{path}")

    @contextmanager
    def failing(self, fault: str) -> Iterator[None]:
        """Requests fail in the block."""
        self.fault = fault
        try:
            yield
        finally:
            self.fault = ""


def require_moto() -> None:
    """ValueError that says what to install, unless moto and s3fs are there."""
    missing = [name for name in ("moto", "s3fs", "boto3") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"the S3 server needs {', '.join(missing)}, of the extra `test`: pip install 'raymae[test]'")


@contextmanager
def s3_server() -> Iterator[S3]:
    """Run the server and its proxy in threads."""
    require_moto()
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    try:
        with proxy_to(moto.get_host_and_port()[1]) as found:
            yield found
    finally:
        moto.stop()


SERVE = """
import sys, threading, time
from moto.server import ThreadedMotoServer
import logging
logging.getLogger("werkzeug").setLevel(logging.ERROR)
moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
moto.start()
print(moto.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""A process that serves until its input ends, as when its parent does."""


@contextmanager
def s3_process() -> Iterator[tuple[S3, int]]:
    """Run the server in a process of its own and its proxy in threads of this one; yields the server's process id."""
    require_moto()
    process = subprocess.Popen([sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with proxy_to(int(process.stdout.readline())) as found:
            yield found, process.pid
    finally:
        process.stdin.close()
        process.terminate()
        process.wait()
        process.stdout.close()


@contextmanager
def proxy_to(port: int, credentials: Mapping[str, str] = CREDENTIALS) -> Iterator[S3]:
    """Run the proxy of a server in threads, and make the bucket."""
    import boto3

    proxy = Server(("127.0.0.1", 0), type("Handler", (Proxy,), {"port": port}))
    proxy.locks = defaultdict(threading.Lock)
    proxy.s3 = S3(f"http://127.0.0.1:{proxy.server_port}")
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    keys = {name.lower().replace("aws_default_", ""): value for name, value in credentials.items()}
    keys["region_name"] = keys.pop("region")
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys).create_bucket(Bucket="bucket")
    try:
        yield proxy.s3
    finally:
        proxy.shutdown()
        proxy.server_close()


class Server(ThreadingHTTPServer):
    """Says nothing of clients that have gone."""

    daemon_threads = True
    request_queue_size = 128
    locks: dict[str, threading.Lock]
    s3: S3

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing."""


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to the port of the server."""

    protocol_version = "HTTP/1.1"
    port = 0
    server: Server

    def do_GET(self) -> None:
        """Pass a request on, or do what is asked for."""
        s3 = self.server.s3
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        s3.requests.append(f"{self.command} {self.path}")
        is_read = self.command == "GET" and "?" not in self.path
        with self.server.locks[""]:
            s3.reads += is_read
            late = is_read and s3.late_every and s3.reads % s3.late_every == 0
        time.sleep(s3.seconds + (s3.late_seconds if late else 0.0))
        refusal = REFUSALS.get(s3.fault)
        if refusal and (self.command not in refusal.methods or (refusal.header and refusal.header not in self.headers)):
            refusal = None
        s3.failed += refusal is not None or s3.fault == "reset"
        if refusal:
            self._answer(refusal.status, {"Content-Type": "application/xml"}, refusal.body)
            return
        conditional = self.headers.get("If-None-Match") is not None
        with self.server.locks[self.path] if conditional else threading.Lock():
            status, headers, content = self._ask(body)
        if s3.fault == "reset":
            self.close_connection = True
            self.connection.close()
            return
        self._answer(status, headers, content)
        if is_read:
            with self.server.locks[""]:
                s3.sent += len(content)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        kept = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        connection.request(self.command, self.path, body, kept)
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        length = headers.get("Content-Length", headers.get("content-length")) if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self._send(memoryview(content))

    def _send(self, content: memoryview) -> None:
        """Send a body at the connection's rate."""
        rate, began = self.server.s3.rate, time.monotonic()
        for start in range(0, len(content), PIECE if rate else max(1, len(content))):
            time.sleep(max(0.0, began + start / rate - time.monotonic()) if rate else 0.0)
            self.wfile.write(content[start : start + PIECE] if rate else content)
        if rate:
            time.sleep(max(0.0, began + len(content) / rate - time.monotonic()))

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""
