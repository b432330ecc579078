"""Read clips one after the other, from address to log-mel, with a time limit for each.

The clips of one recording are read in one go: it is decoded once.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from raymae.audio.errors import AudioError, NoAnswerError, SilentError, TimeLimitError
from raymae.audio.logmel import LogMel, fit_length, is_silent
from raymae.audio.sources import open_clip
from raymae.audio.spans import WHOLE, Clip, Span
from raymae.audio.windows import read_spans
from raymae.config import AudioConfig
from raymae.storage.io_wait import waits

TICK = 0.25
"""Seconds between looks at what a thread that reads a clip is doing."""


class ClipReader:
    """Path or address of a clip to its float16 log-mel, with a time limit for each file.

    Files are read in a daemon thread (an executor's are none), so that one that is stuck and abandoned doesn't keep the
    process from ending.
    """

    def __init__(self, audio: AudioConfig, timeout: float) -> None:
        self.audio, self.timeout = audio, timeout
        self._lock = threading.Lock()
        self._start()
        self._warm_up()

    def _warm_up(self) -> None:
        self.log_mel = LogMel(self.audio)
        self.log_mel(np.zeros(self.audio.win_length, np.float32))  # compiled now, not in the first clip's time

    def _start(self) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=(self._requests,), daemon=True)
        self._thread.start()

    def __del__(self) -> None:
        self._requests.put(None)

    def _read(self, path: str, spans: Sequence[Span]) -> Iterator[Any]:
        audio = self.audio
        for waveform in read_spans(open_clip(path), audio, spans):
            features, valid_frames = fit_length(self.log_mel(waveform), audio.n_frames, audio.silence)
            if is_silent(features, valid_frames):
                yield SilentError()
            else:
                yield features.astype(np.float16), valid_frames, len(waveform) / audio.sample_rate

    def __call__(self, path: str, span: Span = WHOLE) -> Clip:
        """Log-mel (T, F) float16, its frames before padding and the seconds read; of a whole recording, its beginning.

        Raises:
            AudioError: the clip can't be used, with the reason. Subclasses: UnreachableError, its storage fails
                temporarily; NoAnswerError, its storage doesn't answer; SilentError, it holds no sound.
        """
        (answer,) = self.each(path, [span])
        if isinstance(answer, AudioError):
            raise answer
        return answer

    def each(self, path: str, spans: Sequence[Span]) -> Iterator[Clip | AudioError]:
        """The clips that are parts of one recording, in ascending order, each one or its error (see `__call__`)."""
        with self._lock:  # or two callers could take each other's clips
            answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
            before = waits(self._thread).total(time.monotonic())
            self._requests.put((partial(self._read, path, spans), answers))
            failed: AudioError | None = None
            for _ in spans:
                if failed is None:
                    answer = self._answer(answers, before)
                    before = waits(self._thread).total(time.monotonic())
                    failed = answer.error if isinstance(answer, _Failure) else None
                yield failed or answer

    def _answer(self, answers: queue.SimpleQueue[Any], before: float) -> Any:
        """Wait for the thread's next answer: the clip, its error or the `_Failure` of the whole recording.

        Anything else that a decoder may raise is raised.

        What counts is the thread's computing, which neither a busy machine nor a slow storage stretches.

        That it computes for longer than `timeout` is a TimeLimitError; that the storage doesn't answer, or nothing
        happens, for as long, a NoAnswerError.
        """
        began, spent, idle = time.monotonic(), computed(self._thread), 0.0
        last, busy = began, spent
        while True:
            now, waited, doing = time.monotonic(), waits(self._thread), computed(self._thread)
            silent, waiting = waited.silent(now), waited.since != math.inf
            own = doing - spent if CLOCKS else now - began - (waited.total(now) - before)
            # a process that was suspended comes back after a long tick, in which nothing can have happened
            idle = 0.0 if doing > busy or waiting or not CLOCKS else idle + min(now - last, 2 * TICK)
            last, busy = now, doing
            left = self.timeout - max(silent, own, idle)
            with suppress(queue.Empty):
                return _usable(answers.get(timeout=min(max(left, 0.0), TICK)))
            if left <= 0:
                break
        self._requests.put(None)  # the stuck thread is abandoned; the next file gets a new one
        self._start()
        if own >= self.timeout:
            return _Failure(TimeLimitError(f"not decoded within {self.timeout:g} s of computing"))
        what = "no response from its storage" if silent >= self.timeout else "nothing happened while it was read,"
        return _Failure(NoAnswerError(f"{what} for {self.timeout:g} s"))


class WaveformReader(ClipReader):
    """Path or address of a clip to its samples (n,) float32 at the front end's rate, their number and the seconds read.

    float32, because with fewer bits the log-mels would differ from those of the CPU: those of brown noise, whose high
    bands are 60 dB below its low ones, by up to 0.2 with 16-bit samples and by 0.9 with half floats.
    """

    def _warm_up(self) -> None:
        """Nothing is compiled."""

    def _read(self, path: str, spans: Sequence[Span]) -> Iterator[Any]:
        for waveform in read_spans(open_clip(path), self.audio, spans):
            samples = waveform[: self.audio.n_samples].astype(np.float32, copy=False)
            yield samples, len(samples), len(samples) / self.audio.sample_rate


@dataclass(frozen=True)
class _Failure:
    """The error of a recording after which no more of it is read."""

    error: AudioError


def _usable(answer: Any) -> Any:
    """The answer of the thread, errors of the file system as those of a recording; raises all others."""
    if isinstance(answer, BaseException) and not isinstance(answer, OSError | AudioError):
        raise answer
    if isinstance(answer, OSError) and not isinstance(answer, AudioError):
        return _Failure(AudioError(answer.strerror or str(answer)))
    return _Failure(answer) if isinstance(answer, AudioError) and not isinstance(answer, SilentError) else answer


CLOCKS = hasattr(time, "pthread_getcpuclockid")
"""Whether this system tells what a thread has computed; otherwise its time without waiting for the storage counts."""


def computed(thread: threading.Thread) -> float:
    """The CPU time of a thread that lives, in seconds; 0 where that can't be asked."""
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0)) if CLOCKS and thread.is_alive() else 0.0


def _serve(requests: queue.SimpleQueue[Any]) -> None:
    while (request := requests.get()) is not None:
        read, answers = request
        del request  # or this thread would keep the reader alive while it waits
        try:
            for answer in read():
                answers.put(answer)
        except BaseException as error:  # the caller gets it
            answers.put(error)
        del read, answers
