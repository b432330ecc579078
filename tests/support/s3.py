"""An S3 server on this machine, moto's, behind a proxy that is slow, refuses, breaks connections.

moto looks whether an object exists and writes it in two steps: of two conditional requests at once both could succeed,
which S3 rules out. The proxy lets one such request per object through at a time.
"""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from raymae.storage.folder import Folder

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class S3:
    """The server's address, what the proxy does to requests, and what it has seen."""

    url: str
    seconds: float = 0.0
    """Added to every request."""
    fault: str = ""
    """"503": every request is refused; "reset": every connection is broken after the request was carried out."""
    failed: int = 0
    """How many requests the fault has met."""
    requests: list[str] = field(default_factory=list)
    """Method and path of every request."""

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


@contextmanager
def s3_server() -> Iterator[S3]:
    """Run the server and its proxy in threads."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    port = moto.get_host_and_port()[1]
    proxy = Server(("127.0.0.1", 0), type("Handler", (Proxy,), {"port": port}))
    proxy.daemon_threads = True
    proxy.locks = defaultdict(threading.Lock)  # type: ignore[attr-defined]
    proxy.s3 = S3(f"http://127.0.0.1:{proxy.server_port}")  # type: ignore[attr-defined]
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket="bucket")
    try:
        yield proxy.s3  # type: ignore[attr-defined]
    finally:
        proxy.shutdown()
        proxy.server_close()
        moto.stop()


class Server(ThreadingHTTPServer):
    """Says nothing of clients that have gone."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing."""


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to the port of the server."""

    protocol_version = "HTTP/1.1"
    port = 0
    server: Any

    def do_GET(self) -> None:
        """Pass a request on, or do what the test asks for."""
        s3: S3 = self.server.s3
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        s3.requests.append(f"{self.command} {self.path}")
        time.sleep(s3.seconds)
        s3.failed += bool(s3.fault)
        if s3.fault == "503":
            self._answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
            return
        conditional = self.headers.get("If-None-Match") is not None
        with self.server.locks[self.path] if conditional else threading.Lock():
            status, headers, content = self._ask(body)
        if s3.fault == "reset":
            self.close_connection = True
            self.connection.close()
            return
        self._answer(status, headers, content)

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
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
