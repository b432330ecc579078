"""One clip after the other from its address to its log-mel, with a time limit for each."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymae.audio.decode import AudioError, load
from raymae.audio.logmel import LogMel, fit_length
from raymae.audio.sources import open_clip
from raymae.config import AudioConfig
from raymae.storage.io_wait import waits

Clip = tuple[NDArray[np.float16], int, float]
"""A log-mel (T, F), its frames before padding, and the seconds that were read."""


class SilentError(AudioError):
    """A recording's storage neither gave it nor refused it."""


class ClipReader:
    """Reads one clip after the other: path or address to float16 log-mel, with a time limit for each file.

    Files are read in a thread of its own. A daemon, unlike those of an executor: one that is stuck and left behind
    doesn't keep the process from ending.
    """

    def __init__(self, audio: AudioConfig, timeout: float) -> None:
        self.audio, self.timeout = audio, timeout
        self._turn = threading.Lock()
        self._start()
        self.log_mel = LogMel(audio)

    def _start(self) -> None:
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=(self._asked, self._found), daemon=True)
        self._thread.start()

    def __del__(self) -> None:
        self._asked.put(None)

    def _read(self, path: str) -> Clip:
        waveform = load(open_clip(path), self.audio.sample_rate, seconds=self.audio.clip_seconds)
        features, valid_frames = fit_length(self.log_mel(waveform), self.audio.n_frames, self.audio.silence)
        return features.astype(np.float16), valid_frames, len(waveform) / self.audio.sample_rate

    def __call__(self, path: str) -> Clip:
        """Log-mel (T, F) float16, its frames before padding and the seconds read.

        AudioError says what is wrong; of its kinds, UnreachableError: nothing but its storage, which refuses it for
        now, and SilentError: its storage answers nothing.
        """
        with self._turn:  # or two callers could take each other's clips
            return self._ask(path)

    def _ask(self, path: str) -> Clip:
        before = waits(self._thread).total(time.monotonic())
        self._asked.put((self._read, path))
        answer = self._answer(before)
        if isinstance(answer, OSError) and not isinstance(answer, AudioError):
            raise AudioError(answer.strerror or str(answer)) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]

    def _answer(self, before: float) -> Any:
        """What the thread says: the clip or an error.

        AudioError where that takes too long, without the time in which its storage was at work: a tar is gone through
        before its first member. SilentError where the storage gives nothing for as long.
        """
        began = time.monotonic()
        while True:
            now, waited = time.monotonic(), waits(self._thread)
            silent, own = waited.silent(now), now - began - (waited.total(now) - before)
            left = self.timeout - max(silent, own)
            with suppress(queue.Empty):
                return self._found.get(timeout=max(left, 0.0))  # at the end too: this process may have slept itself
            if left <= 0:
                break
        self._asked.put(None)  # the stuck thread is left behind; the next file gets a new one
        self._start()
        if silent >= self.timeout:
            raise SilentError(f"its storage gave nothing for {self.timeout:g} s")
        raise AudioError(f"not decoded within {self.timeout:g} s")


def _serve(asked: queue.SimpleQueue[Any], found: queue.SimpleQueue[Any]) -> None:
    while (request := asked.get()) is not None:
        read, path = request
        del request  # or this thread would keep the reader alive while it waits
        try:
            found.put(read(path))
        except BaseException as error:  # handed to who asked, who raises it
            found.put(error)
        del read
