"""`serve`: a classifier behind Ray Serve against the bare Predictor, one request at a time and many at once."""

from __future__ import annotations

import http.client
import io
import itertools
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import soundfile

from raymae.artifacts import Folder
from raymae.benchmark.cluster import own_ray
from raymae.benchmark.recordings import SAMPLE_RATE, recording
from raymae.benchmark.result import Result, Row
from raymae.config import AudioConfig, ComputeConfig, FinetuneConfig, ModelConfig, ServeConfig
from raymae.recipes import SMALL_MODEL

CLASSES = 10
CLIPS = 16
"""Different recordings; the bare Predictor classifies them together."""
NO_AUDIO = b"no audio"


@dataclass(frozen=True, kw_only=True)
class Serve:
    """24-bit 44.1 kHz WAV files of one clip, by an untrained classifier with the encoder of the recipe `small`.

    Both sides take turns, with the same threads. Alone: the time of a request on an open connection against a call of
    the Predictor with the same bytes, and against its floor, that call and the same bytes sent through Serve to be
    refused as no audio. Together: answers per second to clients that ask again at once, against the Predictor that
    decodes as many files one after the other and classifies them in one forward pass. The clients share the cores.

    `--json` keys: medians `served_ms`, `bare_ms`, `transport_ms` (the refusal); clips per second `clips_per_second`,
    `bare_clips_per_second`; `errors`, answers other than 200 under load; `clients`, `answers`, `threads`, `cpus`.
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    repetitions: int = 30
    """Single requests, after the first three."""
    clients: int = 16
    """Clients at once."""
    seconds: float = 8.0
    """Length of a turn under load."""
    turns: int = 3
    """Turns of each side under load."""
    cpus: int = 2
    """CPUs of Ray, and threads of torch on both sides."""
    clip_seconds: float = 10.0
    """Length of a recording."""
    model: ModelConfig = SMALL_MODEL
    """Sizes of the encoder."""

    def run(self) -> Result:
        """Measure."""
        if min(self.repetitions, self.clients, self.turns) < 1 or self.seconds <= 0:
            raise ValueError("--repetitions, --clients, --seconds and --turns must be positive")
        from raymae.predict import Predictor

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
            f"Floor of a request: {floor:.1f} ms, the call and {alone['transport_ms']:.1f} ms of transport; the request "
            f"takes {alone['served_ms'] / floor:.2f} of it.\n{together['answers']} answers to {self.clients} clients, "
            f"{together['errors']} errors."
        )
        return Result("serve", self.rows(values), values, text)

    def rows(self, values: dict[str, float]) -> list[Row]:
        """The ratios and their goals."""
        ms = {name: values[f"{name}_ms"] for name in ("served", "bare")}
        rates = values["clips_per_second"], values["bare_clips_per_second"]
        what = f"a {self.clip_seconds:g} s clip over HTTP, median"
        latency = f"{ms['served']:.1f} ms", f"{ms['bare']:.1f} ms (Predictor)"
        shown = f"{rates[0]:.1f} clips/s", f"{rates[1]:.1f} clips/s (Predictor, {CLIPS} at once)"
        errors = f"{values['errors']} errors"
        return [
            Row("serve", what, *latency, ms["served"] / ms["bare"], 1.5, at_most=True),
            Row("serve", f"{self.clients} clients at once, {errors}", *shown, rates[0] / rates[1], 0.8),
        ]

    def write_classifier(self, folder: Folder) -> None:
        """An untrained classifier, without pieces or crops: whole clips in one pass."""
        import torch

        from raymae.models import build_classifier
        from raymae.predict import write_classifier

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
                "bare": lambda content=content: bare(content),
                "served": lambda content=content: expect(connection, content, 200),
                "transport": lambda content=content: expect(connection, NO_AUDIO.ljust(len(content)), 400),
            }
            for name, call in sides.items():
                started = time.perf_counter()
                call()
                times[name].append(1000 * (time.perf_counter() - started))
        return {f"{name}_ms": statistics.median(values[3:]) for name, values in times.items()}

    def _together(self, bare: object, port: int, files: list[bytes]) -> dict[str, float]:
        load = Load(port, files, self.clients)
        load.run(2.0)  # every client's connection, and full batches
        ours, theirs = [], []
        load.answers = load.errors = 0
        for _ in range(self.turns):
            theirs.append(batch_rate(bare, files, self.seconds / 2))
            ours.append(load.run(self.seconds))
            theirs.append(batch_rate(bare, files, self.seconds / 2))
        return {
            "clips_per_second": statistics.median(ours),
            "bare_clips_per_second": statistics.median(theirs),
            "errors": load.errors,
            "answers": load.answers,
        }


@dataclass
class Load:
    """Clients that ask again as soon as they are answered."""

    port: int
    files: list[bytes]
    clients: int
    answers: int = 0
    errors: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, seconds: float) -> float:
        """Answers per second while all of them ask."""
        started = time.perf_counter()
        counts = [0] * self.clients

        def ask(client: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            for number in itertools.count(client):
                status = post(connection, self.files[number % len(self.files)])
                with self.lock:
                    self.answers += 1
                    self.errors += status != 200
                if time.perf_counter() - started > seconds:
                    return  # what came after the end doesn't count
                counts[client] += status == 200

        threads = [threading.Thread(target=ask, args=(client,)) for client in range(self.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / seconds


def batch_rate(predictor: object, files: list[bytes], seconds: float) -> float:
    """Clips per second of the Predictor: some files decoded one after the other, then classified together."""
    from raymae.predict import Predictor

    assert isinstance(predictor, Predictor)
    started, clips = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        predictor.of_clips([clip for content in files for clip in predictor.clips(predictor.waveform(content))])
        clips += len(files)
    return clips / (time.perf_counter() - started)


@contextmanager
def served(classifier: Folder, threads: int, clients: int) -> Iterator[int]:
    """Serve a classifier for the block; its port."""
    from ray import serve

    from raymae.serve.job import deploy

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    try:
        deploy(classifier, ServeConfig(port=port, queue=2 * clients), ComputeConfig(torch_threads=threads))
        yield port
    finally:
        serve.shutdown()


def post(connection: http.client.HTTPConnection, content: bytes) -> int:
    """The status of an answer."""
    connection.request("POST", "/", content)
    response = connection.getresponse()
    response.read()
    return response.status


def expect(connection: http.client.HTTPConnection, content: bytes, status: int) -> None:
    """Post; RuntimeError for another status."""
    found = post(connection, content)
    if found != status:
        raise RuntimeError(f"status {found} where {status} was to come")


def wav(seconds: float, seed: int) -> bytes:
    """The bytes of a 24-bit WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, recording(seconds, seed), SAMPLE_RATE, format="WAV", subtype="PCM_24")
    return buffer.getvalue()
