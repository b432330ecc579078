"""Small classifiers behind a real HTTP server in a thread of the test's process: everything but Ray."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import uvicorn

from raymae.config import ServeConfig
from raymae.datasets.labels import Labels
from raymae.inference.classifier import write_classifier
from raymae.inference.predictor import Predictor
from raymae.models import build_classifier
from raymae.serving.http.app import application
from raymae.serving.http.metrics import Report
from raymae.serving.http.service import Service
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO
from tests.support.training import TINY

NAMES = ["airport", "bus", "park", "street, with <b>trams</b>"]


def write_small_classifier(target: Path, labels: Labels = "single") -> Folder:
    """A classifier with a head that gives different recordings different probabilities."""
    torch.manual_seed(0)
    finetune = replace(TINY.finetune, labels=labels)
    model = build_classifier(TINY_AUDIO, TINY.model, finetune, len(NAMES))
    torch.nn.init.normal_(model.head.weight, std=1.0)
    folder = Folder(str(target))
    write_classifier(folder, model, class_names=NAMES, audio=TINY_AUDIO, model_config=TINY.model, finetune=finetune)
    return folder


@contextmanager
def serving(predictor: Predictor, settings: ServeConfig, report: Report | None = None) -> Iterator[tuple[int, Service]]:
    """The application on a port of this machine, and its service."""
    service = Service(predictor, settings, "a classifier", report)
    server = uvicorn.Server(uvicorn.Config(application(service), log_level="critical", lifespan="off"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1], service
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        service.close()


def ask(
    port: int, body: bytes | Iterable[bytes] | None = None, path: str = "/", method: str = "", **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """Status, content (JSON, or text) and headers of an answer; POST where there is a body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, named)
        response = connection.getresponse()
        content, found = response.read().decode(), {name.lower(): value for name, value in response.getheaders()}
        is_json = found["content-type"].startswith("application/json")
        return response.status, json.loads(content) if is_json else content, found
    finally:
        connection.close()


def until(what: Any, seconds: float = 60) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


class Held(Predictor):
    """A predictor whose decoding or forward pass waits until the test sets an event."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder, threads=1)
        self.decode, self.network = threading.Event(), threading.Event()
        self.decode.set()
        self.network.set()
        self.batches: list[int] = []

    def waveform(self, *args: Any, **more: Any) -> Any:
        """Decode as the parent does, once `decode` is set."""
        assert self.decode.wait(60)
        return super().waveform(*args, **more)

    def of_clips(self, clips: Any) -> Any:
        """Classify as the parent does, once `network` is set; keeps the size of the batch."""
        self.batches.append(len(clips))
        assert self.network.wait(60)
        return super().of_clips(clips)
