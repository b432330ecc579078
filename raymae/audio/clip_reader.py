"""Read clips one after the other, from address to log-mel, with a time limit for each."""

from __future__ import annotations

import math
import queue
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymae.audio.decode import load
from raymae.audio.errors import AudioError, SilentError
from raymae.audio.logmel import LogMel, fit_length, is_silent
from raymae.audio.sources import open_clip
from raymae.config import AudioConfig
from raymae.storage.io_wait import waits

Clip = tuple[NDArray[np.float16], int, float]
"""Log-mel (T, F), its frames before padding, and the seconds that were read."""


TICK = 0.25
"""Seconds between looks at what a thread that reads a clip is doing."""


class NoAnswerError(AudioError):
    """Neither the recording nor an error came: of its storage, or because nothing happened at all. It may pass."""


class TimeLimitError(AudioError):
    """Decoding takes more computing than is allowed."""


class ClipReader:
    """Path or address of a clip to its float16 log-mel, with a time limit for each file.

    Files are read in a daemon thread (an executor's are none), so that one that is stuck and abandoned doesn't keep the
    process from ending.
    """

    def __init__(self, audio: AudioConfig, timeout: float) -> None:
        self.audio, self.timeout = audio, timeout
        self._lock = threading.Lock()
        self._start()
        self.log_mel = LogMel(audio)
        self.log_mel(np.zeros(audio.win_length, np.float32))  # compiled now, not in the first clip's time

    def _start(self) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=(self._requests, self._answers), daemon=True)
        self._thread.start()

    def __del__(self) -> None:
        self._requests.put(None)

    def _read(self, path: str) -> Clip:
        waveform = load(open_clip(path), self.audio.sample_rate, seconds=self.audio.clip_seconds)
        features, valid_frames = fit_length(self.log_mel(waveform), self.audio.n_frames, self.audio.silence)
        if is_silent(features, valid_frames):
            raise SilentError
        return features.astype(np.float16), valid_frames, len(waveform) / self.audio.sample_rate

    def __call__(self, path: str) -> Clip:
        """Log-mel (T, F) float16, its frames before padding and the seconds read.

        Raises:
            AudioError: the clip can't be used, with the reason. Subclasses: UnreachableError, its storage fails
                temporarily; NoAnswerError, its storage doesn't answer; SilentError, it holds no sound.
        """
        with self._lock:  # or two callers could take each other's clips
            return self._ask(path)

    def _ask(self, path: str) -> Clip:
        before = waits(self._thread).total(time.monotonic())
        self._requests.put((self._read, path))
        answer = self._answer(before)
        if isinstance(answer, OSError) and not isinstance(answer, AudioError):
            raise AudioError(answer.strerror or str(answer)) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]

    def _answer(self, before: float) -> Any:
        """Wait for the thread's answer: the clip or an error.

        What counts is the thread's computing, which neither a busy machine nor a slow storage stretches.

        Raises:
            TimeLimitError: it computes for longer than `timeout`.
            NoAnswerError: the storage doesn't answer, or nothing happens, for as long.
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
                return self._answers.get(timeout=min(max(left, 0.0), TICK))
            if left <= 0:
                break
        self._requests.put(None)  # the stuck thread is abandoned; the next file gets a new one
        self._start()
        if own >= self.timeout:
            raise TimeLimitError(f"not decoded within {self.timeout:g} s of computing")
        what = "no response from its storage" if silent >= self.timeout else "nothing happened while it was read,"
        raise NoAnswerError(f"{what} for {self.timeout:g} s")


CLOCKS = hasattr(time, "pthread_getcpuclockid")
"""Whether this system tells what a thread has computed; otherwise its time without waiting for the storage counts."""


def computed(thread: threading.Thread) -> float:
    """The CPU time of a thread that lives, in seconds; 0 where that can't be asked."""
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0)) if CLOCKS and thread.is_alive() else 0.0


def _serve(requests: queue.SimpleQueue[Any], answers: queue.SimpleQueue[Any]) -> None:
    while (request := requests.get()) is not None:
        read, path = request
        del request  # or this thread would keep the reader alive while it waits
        try:
            answers.put(read(path))
        except BaseException as error:  # the caller raises it
            answers.put(error)
        del read
