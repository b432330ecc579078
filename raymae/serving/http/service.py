"""A replica's service: threads decode and featurize recordings, and clips of all requests share forward passes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymae.audio.errors import SilentError
from raymae.config import ServeConfig
from raymae.inference.predictor import Predictor
from raymae.inference.windowed import Clip
from raymae.serving.http.batching import Batcher
from raymae.serving.http.formats import formats
from raymae.serving.http.metrics import Metrics, Report
from raymae.serving.http.scenes import scenes
from raymae.serving.http.spectrogram import Spectrogram
from raymae.serving.http.upload import Uploads, file_of

DECODERS = 4
UPLOADS = 8
"""Largest uploads that fit into the memory of all uploads."""
WAITING = 2
"""Batches of clips that may wait for a forward pass, 0.7 MB a clip at the defaults."""


NO_SOUND: Future[NDArray[np.float32] | None] = Future()
"""The result of a silent clip."""
NO_SOUND.set_result(None)


class OverloadedError(Exception):
    """The queue is full."""


@dataclass
class Recording:
    """A recording that is being processed by the threads."""

    duration: float = 0.0
    windows: list[tuple[float, float, Future[NDArray[np.float32] | None]]] = field(default_factory=list)
    spectrogram: dict[str, Any] | None = None
    dropped: bool = False

    def drop(self) -> None:
        """Cancel the clips that are not processed yet; nobody waits for the answer any more."""
        self.dropped = True
        for _, _, future in self.windows:
            future.cancel()


class Service:
    """A classifier and its queue. One per process.

    Args:
        predictor: used by the service's threads alone from now on.
        name: of the classifier, as `health` reports it.
        report: to a board of counts that all replicas share.
    """

    def __init__(self, predictor: Predictor, settings: ServeConfig, name: str, report: Report | None = None) -> None:
        self.predictor, self.settings, self.name = predictor, settings, name
        self.ongoing = 0
        self.metrics = Metrics(lambda: self.ongoing, report)
        self.uploads = Uploads(UPLOADS * settings.max_bytes)
        self.batcher: Batcher[Clip, NDArray[np.float32] | None] = Batcher(
            predictor.of_clips, settings.batch, WAITING * settings.batch
        )
        self.decoders = ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1), thread_name_prefix="decode")

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold a place in the queue for the block; OverloadedError where the queue is full."""
        if self.ongoing >= self.settings.queue:
            raise OverloadedError(f"{self.ongoing} requests are being worked on: try again in a moment")
        self.ongoing += 1
        try:
            yield
        finally:
            self.ongoing -= 1

    async def classify(self, body: bytes, content_type: str, with_spectrogram: bool = False) -> dict[str, Any]:
        """Classify the recording in a request's body; returns the answer for JSON (see jobs/README.md).

        A cancelled call leaves no work behind. Raises AudioError, SilentError for a recording without sound,
        TooLongError for one longer than `serve.max_minutes`, and UploadError.
        """
        recording = Recording()
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self.decoders, self._decode, recording, body, content_type, with_spectrogram)
            values = await asyncio.gather(*(asyncio.wrap_future(future) for _, _, future in recording.windows))
        finally:
            recording.drop()
        windows = [(start, end, value) for (start, end, _), value in zip(recording.windows, values, strict=True)]
        self.metrics.counts["windows",] += sum(value is not None for value in values)
        mean = self.predictor.average(windows)
        label, confidence = self.predictor.label(mean)
        result = {
            "scene_label": label,
            "confidence": round(confidence, 6),
            "probabilities": self._named(mean),
            "duration": round(recording.duration, 3),
            "scenes": scenes(self.predictor, windows),
            "windows": [
                {"start": round(start, 3), "end": round(end, 3), **self._answer(value)} for start, end, value in windows
            ],
        }
        return result | ({"spectrogram": recording.spectrogram} if with_spectrogram else {})

    def _decode(self, recording: Recording, body: bytes, content_type: str, with_spectrogram: bool) -> None:
        """Decode a recording and submit its clips to the batcher; ends early once the recording is dropped."""
        audio = self.predictor.classifier.audio
        source = file_of(body, content_type)
        waveform = self.predictor.waveform(source, 60 * self.settings.max_minutes)
        recording.duration = len(waveform) / audio.sample_rate
        picture = Spectrogram(audio, len(waveform)) if with_spectrogram else None
        for clip in self.predictor.clips(waveform):
            if recording.dropped:
                break
            recording.windows.append((clip.start, clip.end, NO_SOUND if clip.is_silent else self.batcher.submit(clip)))
            if picture:
                picture.add(clip)
        if recording.dropped:
            recording.drop()  # cancels the clips submitted meanwhile
        elif picture:
            recording.spectrogram = picture.to_json()

    def _answer(self, value: NDArray[np.float32] | None) -> dict[str, Any]:
        return {"error": str(SilentError())} if value is None else {"probabilities": self._named(value)}

    def _named(self, values: Any) -> dict[str, float]:
        return {name: round(float(value), 6) for name, value in zip(self.predictor.class_names, values, strict=True)}

    def health(self) -> dict[str, Any]:
        """Status, classifier and limits of the service, for JSON."""
        one, settings = self.predictor.classifier, self.settings
        return {
            "status": "ok",
            "classifier": self.name,
            "classes": one.class_names,
            "labels": one.finetune.labels,
            "formats": list(formats()),
            "sample_rate": one.audio.sample_rate,
            "window_seconds": one.audio.clip_seconds,
            "max_mb": settings.max_mb,
            "max_minutes": settings.max_minutes,
            "timeout_seconds": settings.timeout_seconds,
        }

    def close(self) -> None:
        """End the threads once they have finished their work."""
        self.decoders.shutdown()
        self.batcher.close()
