"""The whole job on Ray Serve: it starts, answers, listens on loopback alone, and ends on SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raymae.config import ComputeConfig, Config, ServeConfig
from raymae.inference.predictor import Predictor
from raymae.serving.http.job import serve_classifier
from tests.support.audio_files import TINY_AUDIO, encoded
from tests.support.serving import NAMES, ask, write_small_classifier

pytestmark = pytest.mark.ray

LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def listeners(port: int) -> set[str]:
    """The addresses, in the kernel's hex, on which a process listens on a port (Linux)."""
    found = set()
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(name).read_text().splitlines()[1:] if Path(name).exists() else []:
            _, local, _, state = line.split()[:4]
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                found.add(address)
    return found


class Visitor(threading.Thread):
    """A client that starts once the server answers, and at last ends the job as a user or a cluster would."""

    def __init__(self, config: Config, expected: list[dict[str, float]]) -> None:
        super().__init__()
        self.config, self.port, self.expected = config, config.serve.port, expected
        self.job_ended = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.is_up():
                if self.job_ended.wait(0.2):
                    return
            self.visit()
        except BaseException as error:  # the test's to raise
            self.error = error
        finally:
            if not self.job_ended.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

    def is_up(self) -> bool:
        try:
            return ask(self.port, path="/health")[0] == 200
        except OSError:
            return False

    def visit(self) -> None:
        assert ask(self.port, path="/health")[1]["classes"] == NAMES
        assert ask(self.port)[1].startswith("<!doctype html>")
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda seed: ask(self.port, recording(seed)), range(len(self.expected))))
        for (status, found, _), probabilities in zip(answers, self.expected, strict=True):
            assert status == 200
            assert found["probabilities"] == pytest.approx(probabilities, abs=1e-4)
        counted = f'raymae_http_responses_total{{method="POST",path="/",status="200"}} {len(answers)}.0'
        end = time.monotonic() + 30
        while counted not in ask(self.port, path="/metrics")[1]:  # either replica knows the other's, a second later
            assert time.monotonic() < end, ask(self.port, path="/metrics")[1]
        bodies = {
            400: b"<html>",
            413: bytes(self.config.serve.max_bytes + 1),
            422: encoded(n_samples=8000 * 61, format="FLAC"),
        }
        for status, body in bodies.items():
            found, content, _ = ask(self.port, body)
            assert (found, list(content)) == (status, ["error"]), content
        assert ask(self.port, iter([bytes(100_000)] * 20))[0] == 413
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nRIFF")
            client.settimeout(60)
            assert client.recv(65536).startswith(b"HTTP/1.1 408 ")
        if os.path.exists("/proc/net/tcp"):
            assert listeners(self.port)
            assert listeners(self.port) <= LOOPBACK, "it listens beyond this machine"
        with pytest.raises(ValueError, match=f"serve.port = {self.port}: Address already in use"):
            serve_classifier(self.config)
        self.be_answered_after_sigterm()

    def be_answered_after_sigterm(self) -> None:
        body = recording(0)
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body[:100])
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2)
            client.sendall(body[100:])
            client.settimeout(60)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def recording(seed: int) -> bytes:
    return encoded(seed, n_samples=(1 + seed % 3) * TINY_AUDIO.n_samples)


def test_it_serves_until_it_is_stopped(ray_cluster: None, tmp_path: Path, capfd: Any) -> None:
    from ray import serve

    folder = write_small_classifier(tmp_path / "classifier")
    predictor = Predictor(folder, threads=1)
    limits = ServeConfig(model=folder.url, port=free_port(), max_mb=1, max_minutes=1, timeout_seconds=6, replicas=2)
    config = Config(serve=limits, compute=ComputeConfig(torch_threads=1))
    visitor = Visitor(config, [predictor(recording(seed)) for seed in range(12)])
    before = signal.getsignal(signal.SIGTERM)
    visitor.start()
    try:
        result = serve_classifier(config)
    finally:
        visitor.job_ended.set()
        visitor.join()
    if visitor.error:
        raise visitor.error
    assert result["classes"] == NAMES
    assert result["address"] == f"http://127.0.0.1:{limits.port}"
    assert f"serving {folder.url} (4 classes) at {result['address']}" in capfd.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    assert not serve.status().applications
    end = time.monotonic() + 60
    while listeners(limits.port):
        assert time.monotonic() < end, "it still listens"
        time.sleep(0.1)


def test_a_wrong_classifier_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = Config(serve=ServeConfig(model=str(tmp_path)))
    with pytest.raises(ValueError, match=r"--serve\.model .* is not a classifier: it has no classifier\.json"):
        serve_classifier(config)
    folder = write_small_classifier(tmp_path / "classifier")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = replace(config, serve=ServeConfig(model=folder.url, port=port))
        with pytest.raises(ValueError, match=rf"serve\.port = {port}: Address already in use"):
            serve_classifier(busy)
