"""`serve`: a classifier behind Ray Serve against the bare Predictor, for single and for concurrent requests."""

from __future__ import annotations

import http.client
import io
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import soundfile

from raymae.benchmark.harness.memory import process_tree
from raymae.benchmark.harness.own_ray import own_ray
from raymae.benchmark.harness.result import Result, Row
from raymae.benchmark.harness.timing import cpu_between, cpu_seconds
from raymae.config import AudioConfig, ComputeConfig, FinetuneConfig, ModelConfig, ServeConfig
from raymae.config.recipes import SMALL_MODEL
from raymae.datasets.synthetic.tones import SAMPLE_RATE, recording
from raymae.storage.folder import Folder

if TYPE_CHECKING:
    from raymae.inference.predictor import Predictor

CLASSES = 10
CLIPS = 16
"""Number of recordings, which the bare Predictor classifies in one batch."""
NO_AUDIO = b"no audio"


@dataclass(frozen=True, kw_only=True)
class Serve:
    """24-bit 44.1 kHz WAV files of one clip, with an untrained classifier that has the encoder of the recipe `small`.

    Both sides alternate, with the same threads. Single requests: the time of a request on an open connection, against a
    call of the Predictor with the same bytes, and against the floor: that call plus a request with as many bytes that
    Serve rejects as no audio. Under load: responses per second to clients that send the next request at once, against
    the Predictor, which decodes 16 files one after the other and classifies them in one forward pass. The clients share
    the cores.

    `--json` keys: medians `served_ms`, `bare_ms`, `transport_ms` (the rejected request); clips per second
    `clips_per_second`, `bare_clips_per_second`; CPU milliseconds per clip over all processes of a side, including the
    clients, `cpu_ms` and `bare_cpu_ms`, and `cpu_ratio`, bare over served, which is less affected by other processes;
    `errors`, responses under load with a status other than 200; `clients`, `answers`, `threads`, `cpus`.
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    repetitions: int = 30
    """Timed single requests, after three untimed ones."""
    clients: int = 16
    """Concurrent clients."""
    seconds: float = 8.0
    """Length of a turn under load, seconds."""
    turns: int = 3
    """Turns of each side under load."""
    cpus: int = 2
    """CPUs of Ray, and threads of torch on both sides."""
    clip_seconds: float = 10.0
    """Length of a recording, seconds."""
    model: ModelConfig = SMALL_MODEL
    """Sizes of the encoder."""

    def run(self) -> Result:
        """Measure."""
        if min(self.repetitions, self.clients, self.turns) < 1 or self.seconds <= 0:
            raise ValueError("--repetitions, --clients, --seconds and --turns must be positive")
        from raymae.inference.predictor import Predictor

        files = [wav(self.clip_seconds, seed) for seed in range(CLIPS)]
        with tempfile.TemporaryDirectory(prefix="raymae-serve-") as folder:
            self.write_classifier(Folder(folder))
            bare = Predictor(folder, threads=self.cpus)
            with own_ray(self.cpus), served(Folder(folder), self.cpus, self.clients) as port:
                alone = self._alone(bare, port, files)
                together = self._together(bare, port, files)
        values = alone | together | {"clients": self.clients, "threads": self.cpus, "cpus": self.cpus}
        floor = alone["bare_ms"] + alone["transport_ms"]
        text = (
            f"Floor of a request: {floor:.1f} ms (the call and {alone['transport_ms']:.1f} ms of transport); a request "
            f"takes {alone['served_ms'] / floor:.2f} x the floor.\n"
            f"{together['answers']} responses to {self.clients} clients, {together['errors']} errors. "
            f"CPU per clip, all processes and clients: {together['cpu_ms']:.1f} ms, bare "
            f"{together['bare_cpu_ms']:.1f} ms; ratio when all cores compute: {together['cpu_ratio']:.2f}."
        )
        return Result("serve", self.rows(values), values, text)

    def rows(self, values: dict[str, float]) -> list[Row]:
        """Rows of latency and throughput, with their goals."""
        ms = {name: values[f"{name}_ms"] for name in ("served", "bare")}
        rates = values["clips_per_second"], values["bare_clips_per_second"]
        what = f"a {self.clip_seconds:g} s clip over HTTP, median"
        latency = f"{ms['served']:.1f} ms", f"{ms['bare']:.1f} ms (Predictor)"
        throughput = f"{rates[0]:.1f} clips/s", f"{rates[1]:.1f} clips/s (Predictor, {CLIPS} at once)"
        errors = f"{values['errors']} errors"
        return [
            Row("serve", what, *latency, ms["served"] / ms["bare"], 1.5, at_most=True),
            Row("serve", f"{self.clients} clients at once, {errors}", *throughput, rates[0] / rates[1], 0.8),
        ]

    def write_classifier(self, folder: Folder) -> None:
        """Write an untrained classifier that takes whole clips in one pass, without pieces or crops."""
        import torch

        from raymae.inference.classifier import write_classifier
        from raymae.models import build_classifier

        audio, finetune = AudioConfig(clip_seconds=self.clip_seconds), FinetuneConfig()
        torch.manual_seed(0)
        write_classifier(
            folder,
            build_classifier(audio, self.model, finetune, CLASSES),
            class_names=[f"scene {number}" for number in range(CLASSES)],
            audio=audio,
            model_config=self.model,
            finetune=finetune,
        )

    def _alone(self, bare: Callable[[bytes], object], port: int, files: list[bytes]) -> dict[str, float]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        times: dict[str, list[float]] = {"bare": [], "served": [], "transport": []}
        for number in range(self.repetitions + 3):
            content = files[number % CLIPS]
            sides: dict[str, Callable[[], object]] = {
                "bare": partial(bare, content),
                "served": partial(expect, connection, content, 200),
                "transport": partial(expect, connection, NO_AUDIO.ljust(len(content)), 400),
            }
            for name, call in sides.items():
                started = time.perf_counter()
                call()
                times[name].append(1000 * (time.perf_counter() - started))
        connection.close()
        return {f"{name}_ms": statistics.median(values[3:]) for name, values in times.items()}

    def _together(self, bare: Predictor, port: int, files: list[bytes]) -> dict[str, float]:
        def bare_turn(seconds: float) -> int:
            return classify_together(bare, files, seconds)

        load = Load(port, files, self.clients)
        load.run(2.0)  # warm-up: opens all connections and fills the batches
        load.answers = load.errors = 0
        rates: dict[str, list[float]] = {"served": [], "bare": []}
        used: dict[str, list[float]] = {"served": [], "bare": []}
        for _ in range(self.turns):
            for side, clips in (("bare", bare_turn), ("served", load.run), ("bare", bare_turn)):
                seconds = self.seconds if side == "served" else self.seconds / 2
                before, started = cpu_seconds(process_tree(os.getpid())), time.perf_counter()
                count = clips(seconds)
                rates[side].append(count / (time.perf_counter() - started))
                used[side].append(1000 * cpu_between(before, cpu_seconds(process_tree(os.getpid()))) / count)
        cpu, bare_cpu = statistics.median(used["served"]), statistics.median(used["bare"])
        return {
            "clips_per_second": statistics.median(rates["served"]),
            "bare_clips_per_second": statistics.median(rates["bare"]),
            "cpu_ms": cpu,
            "bare_cpu_ms": bare_cpu,
            "cpu_ratio": bare_cpu / cpu,
            "errors": load.errors,
            "answers": load.answers,
        }


@dataclass
class Load:
    """Clients that send the next request as soon as the last one is answered."""

    port: int
    files: list[bytes]
    clients: int
    answers: int = 0
    errors: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, seconds: float) -> int:
        """Send requests for some seconds and wait for the last responses; returns the number of clips classified."""
        started = time.perf_counter()
        before = self.answers - self.errors

        def send(client: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            number = client
            while time.perf_counter() - started < seconds:
                status = post(connection, self.files[number % len(self.files)])
                number += 1
                with self.lock:
                    self.answers += 1
                    self.errors += status != 200
            connection.close()

        threads = [threading.Thread(target=send, args=(client,)) for client in range(self.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.answers - self.errors - before


def classify_together(predictor: Predictor, files: list[bytes], seconds: float) -> int:
    """For some seconds, decode the files one by one and classify them in one forward pass; returns the clips done."""
    started, clips = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        predictor.of_clips([clip for content in files for clip in predictor.clips(predictor.waveform(content))])
        clips += len(files)
    return clips


@contextmanager
def served(classifier: Folder, threads: int, clients: int) -> Iterator[int]:
    """Serve a classifier for the duration of the block; yields the port."""
    from ray import serve

    from raymae.serving.http.job import deploy

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    try:
        deploy(classifier, ServeConfig(port=port, queue=2 * clients), ComputeConfig(torch_threads=threads))
        yield port
    finally:
        serve.shutdown()


def post(connection: http.client.HTTPConnection, content: bytes) -> int:
    """Post the content; returns the status of the response."""
    connection.request("POST", "/", content)
    response = connection.getresponse()
    response.read()
    return response.status


def expect(connection: http.client.HTTPConnection, content: bytes, status: int) -> None:
    """Post the content; RuntimeError if the status is another one."""
    found = post(connection, content)
    if found != status:
        raise RuntimeError(f"status {found} instead of {status}")


def wav(seconds: float, seed: int) -> bytes:
    """Bytes of a 24-bit WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, recording(seconds, seed), SAMPLE_RATE, format="WAV", subtype="PCM_24")
    return buffer.getvalue()
