"""Decode audio files, or parts of them, to mono waveforms at a given rate; AudioError says why a file can't be used.

Without torch: a worker that featurizes needs a tenth of the memory.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, inf
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from raymae.audio.errors import AudioError, TooLongError, UnreachableError
from raymae.audio.formats.av_reader import UNKNOWN_FRAMES
from raymae.audio.reader import Reader, open_reader
from raymae.storage.retry import is_transient

FloatArray = NDArray[np.float32]

MAX_CHANNELS = 64

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000

MAX_SAMPLES = 2**27
"""Samples of the longest waveform that `load` returns: 512 MiB, 70 minutes at 32 kHz."""

HEADROOM = 16.0
"""Largest peak of a float file whose samples are taken to be in units of full scale (+24 dB)."""

_BLOCK_VALUES = 2**20

_LEAD_FRAMES = 2**14  # decoded before a part and dropped: MP3 frames need the bit reservoir of earlier ones


@contextmanager
def open_audio(source: str | Path | bytes | BinaryIO) -> Iterator[Reader]:
    """Open a file, the bytes of an encoded file or an open file; raises AudioError as `load`, also while it is read."""
    stream = None
    try:
        with _open(source) as stream, open_reader(stream) as file:
            if file.channels > MAX_CHANNELS or not MIN_SAMPLE_RATE <= file.samplerate <= MAX_SAMPLE_RATE:
                raise AudioError(f"{file.channels} channels at {file.samplerate} Hz are not supported")
            if not file.frames:
                raise AudioError("no samples")
            yield file
            if hidden := _hidden_error(stream):
                raise hidden
    except (soundfile.LibsndfileError, OSError, AudioError) as error:
        raise _as_audio_error(error, stream) from None


def load(
    source: str | Path | bytes | BinaryIO,
    sample_rate: int,
    *,
    start_seconds: float = 0.0,
    seconds: float | None = None,
    max_seconds: float | None = None,
) -> FloatArray:
    """Decode a file, the bytes of an encoded file or an open file to a mono waveform (n_samples,) at `sample_rate`.

    Only the part from `start_seconds` on, `seconds` long or up to the end of the recording, is decoded and resampled,
    as if the file held nothing else. Channels are averaged. Resampling is soxr's HQ: flat up to 91 % of the lower
    Nyquist frequency, aliases more than 120 dB down.

    Float files may exceed [-1, 1] and are kept as they are up to `HEADROOM`. A larger peak means that the samples
    are in units of 16, 24 or 32 bit integers: they are divided by the first of 2^15, 2^23 and 2^31 that is not below
    the peak. A WAV file whose size was never filled in (what programs write to a pipe, or 0) is read to its end, like
    a FLAC file without a count, and an MP3 without one. Joined MP3s are read whole; other joined streams are refused.
    AAC, MP4, WebM, WMA and AMR need PyAV (`raymae.audio.formats.av_reader`).

    Not detected is a missing end of an Ogg file of Vorbis or Opus, of an AAC file or an MP3 without a Xing frame that
    ends between two frames: nothing in the file tells.

    Raises:
        AudioError: the file is missing, not a regular file (it is not opened), not audio, empty, truncated or chained
            (or has fewer frames than its header says), changes its sample rate, or has NaN or infinite samples.
        TooLongError: it is longer than `MAX_SAMPLES` or `max_seconds`; before decoding if the header says so.
        UnreachableError: its storage fails temporarily.
    """
    with open_audio(source) as file:
        native_rate = file.samplerate
        longest = inf if max_seconds is None else max_seconds * native_rate
        limit = min(MAX_SAMPLES * min(1.0, native_rate / sample_rate), longest)
        waveform = _read_part(file, int(limit), start_seconds, seconds)
    waveform = _to_full_scale(waveform)
    if native_rate != sample_rate:
        waveform = soxr.resample(waveform, native_rate, sample_rate, quality="HQ")
    if seconds is not None:
        waveform = waveform[: round(seconds * sample_rate)]
    if not len(waveform):
        raise AudioError(f"too short: no sample at {sample_rate} Hz")
    return waveform


def _as_audio_error(error: soundfile.LibsndfileError | OSError | AudioError, stream: BinaryIO | None) -> AudioError:
    """The AudioError to raise for an error of libsndfile or of the file system."""
    if hidden := _hidden_error(stream):
        return hidden
    if isinstance(error, AudioError):
        return error
    if isinstance(error, OSError):
        return (UnreachableError if is_transient(error) else AudioError)(error.strerror or type(error).__name__)
    return AudioError(f"can't be decoded: {' '.join(error.error_string.split())}")


def _hidden_error(stream: BinaryIO | None) -> AudioError | None:
    """The error of a read at a URL, which libsndfile took for the end of the file."""
    error = getattr(getattr(stream, "raw", None), "error", None)
    return error if isinstance(error, AudioError) else None


def _open(source: str | Path | bytes | BinaryIO) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, str | Path):
        return source
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise AudioError("not a regular file")
    return io.FileIO(source)


def _read_part(file: Reader, limit: int, start_seconds: float, seconds: float | None) -> FloatArray:
    """Mono mix of a part, at most `limit` frames long, of an open file at the file's own rate."""
    rate, frames = file.samplerate, file.frames
    start = round(start_seconds * rate)
    if start >= frames:
        raise AudioError(f"only {frames / rate:.2f} s long, but the part starts at {start_seconds:g} s")
    lead = min(start, _LEAD_FRAMES)
    if start:
        file.seek(start - lead)
    wanted = frames - start if seconds is None else min(frames - start, ceil(seconds * rate))
    if limit < wanted and frames != UNKNOWN_FRAMES:
        raise too_long(limit, rate)
    waveform = read_mono(file, lead + wanted, lead + limit)[lead:]
    if len(waveform) < wanted and frames != UNKNOWN_FRAMES:
        raise AudioError(f"truncated: {len(waveform)} of {wanted} frames")
    return waveform


def read_mono(file: Reader, n_frames: int, limit: float = inf) -> FloatArray:
    """Mean of the channels over the next `n_frames` frames, fewer at the end, decoded in blocks of bounded size.

    TooLongError for more than `limit`.
    """
    block_frames = _BLOCK_VALUES // file.channels
    blocks: list[FloatArray] = []
    count = 0
    while count < n_frames:
        block = file.read(min(block_frames, n_frames - count), dtype="float32", always_2d=True)
        if not len(block):
            break
        if file.channels == 1:
            blocks.append(block[:, 0])
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # non-finite samples are refused later
                mean: FloatArray = sum(block.T) / np.float32(file.channels)  # type: ignore[assignment]
                blocks.append(mean)  # 30 times faster than mean(axis=1)
        count += len(block)
        if count > limit:
            raise too_long(int(limit), file.samplerate)
    return blocks[0] if len(blocks) == 1 else np.concatenate([np.empty(0, np.float32), *blocks])


def too_long(limit: int, rate: int) -> TooLongError:
    """The error of a recording of more than `limit` frames at `rate`."""
    return TooLongError(f"longer than {limit / rate / 60:.3g} minutes: read it in parts")


def _to_full_scale(waveform: FloatArray) -> FloatArray:
    """Scale `waveform` to units of full scale; AudioError as of `full_scale`."""
    scale = full_scale(max(waveform.max(initial=0), -waveform.min(initial=0)))
    return waveform if scale == 1 else waveform / np.float32(scale)


def full_scale(peak: float) -> float:
    """What the samples of a recording with this peak are divided by (see `load`).

    Raises AudioError for NaN, infinity and values beyond 2^31.
    """
    if not np.isfinite(peak):
        raise AudioError("NaN or infinite samples")
    for scale in (1, 2**15, 2**23, 2**31):
        if peak <= (HEADROOM if scale == 1 else scale):
            return float(scale)
    raise AudioError(f"samples up to {peak:.3g} are not a waveform")
