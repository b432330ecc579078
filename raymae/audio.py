"""From an audio file to a log-mel spectrogram, without torch: a worker that featurizes needs a tenth of the memory.

`load` decodes a file, or a part of it, to a mono waveform at the wanted rate and says why where it can't. `LogMel` is
the front end of Cai & Li (ICME 2024 Grand Challenge, section 3) with the details of its authors' public code, or
another of `raymae.config.FRONT_ENDS`.
"""

from __future__ import annotations

import io
import os
import stat
from math import ceil, inf, log
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike, NDArray

from raymae.config import AudioConfig
from raymae.headers import find_fault
from raymae.spectrum import KaldiSpectra, PowerSpectra, power_spectra
from raymae.storage.retry import passes

FloatArray = NDArray[np.float32]

MAX_CHANNELS = 64
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000
MAX_SAMPLES = 2**27
"""Longest waveform that `load` returns: 512 MiB, 70 minutes at 32 kHz."""
HEADROOM = 16.0
"""Largest peak of a float file that counts as a level in units of full scale (+24 dB)."""

_BLOCK_VALUES = 2**20
_LEAD_FRAMES = 2**14  # decoded before a part and dropped: MP3 frames need the bit reservoir of those before them
_UNKNOWN_FRAMES = 2**63 - 1

_PAPER = AudioConfig()
_CHUNK_FRAMES = 64
_BLOCK_WEIGHTS = 2_000


class AudioError(ValueError):
    """Why a recording can't be used, in one line and without its path."""


class UnreachableError(AudioError, ConnectionError):
    """A recording that its storage doesn't give, although it was asked several times: later it may."""


class TooLongError(AudioError):
    """The recording is longer than is read at once."""


class _SequentialFile(soundfile.SoundFile):
    """Reads on without the seek that soundfile adds to every read; at the end of a FLAC of unknown length it fails."""

    def seekable(self) -> bool:
        return False


def load(
    source: str | Path | bytes | BinaryIO,
    sample_rate: int,
    *,
    start_seconds: float = 0.0,
    seconds: float | None = None,
    max_seconds: float | None = None,
) -> FloatArray:
    """The mono waveform (n_samples,) at `sample_rate` of a file, of an encoded file's bytes or of an open file.

    Only the part from `start_seconds` on, `seconds` long or less where the recording ends, is decoded and resampled,
    as if the file held nothing else. Channels are averaged. Resampling is soxr's HQ: flat to 91 % of the lower
    rate's half, and what would alias is more than 120 dB down.

    Float files may exceed [-1, 1] and are kept as they are up to `HEADROOM`. A larger peak means that the samples
    are in units of 16, 24 or 32 bit integers: they are divided by the first of 2^15, 2^23 and 2^31 that is not below
    the peak. A WAV file written to a pipe (data size 2^32 - 1) is read to its end, like a FLAC file without a count.

    Raises AudioError for what is missing, not a regular file (it is not opened), not audio, empty, truncated or
    chained (`headers.find_fault`; or fewer frames than the header promises), and for NaN or infinite samples;
    TooLongError for what is longer than `MAX_SAMPLES` or `max_seconds`, before it is decoded where the header says so;
    UnreachableError where the file's storage fails with what may pass.
    What libsndfile hides passes: the lost end of an Ogg file, and of an MP3 of variable bit rate without a Xing header,
    whose length it guesses.
    """
    stream = None
    try:
        with _open(source) as stream:
            fault = find_fault(stream)
            if fault:
                raise AudioError(fault)
            # a descriptor where there is one: decoding through a Python object's reads and seeks takes a tenth longer
            direct = isinstance(stream, io.FileIO)
            with _SequentialFile(stream.fileno() if direct else stream, closefd=False) as file:
                native_rate = file.samplerate
                longest = inf if max_seconds is None else max_seconds * native_rate
                limit = min(MAX_SAMPLES * min(1.0, native_rate / sample_rate), longest)
                waveform = _read_part(file, int(limit), start_seconds, seconds)
            if hidden := _hidden(stream):
                raise hidden
    except (soundfile.LibsndfileError, OSError, AudioError) as error:
        raise _said(error, stream) from None
    waveform = _to_full_scale(waveform)
    if native_rate != sample_rate:
        waveform = soxr.resample(waveform, native_rate, sample_rate, quality="HQ")
    if seconds is not None:
        waveform = waveform[: round(seconds * sample_rate)]
    if not len(waveform):
        raise AudioError(f"too short: no sample at {sample_rate} Hz")
    return waveform


def _said(error: soundfile.LibsndfileError | OSError | AudioError, stream: BinaryIO | None) -> AudioError:
    """What to say of an error."""
    if hidden := _hidden(stream):
        return hidden
    if isinstance(error, AudioError):
        return error
    if isinstance(error, OSError):
        return (UnreachableError if passes(error) else AudioError)(error.strerror or type(error).__name__)
    return AudioError(f"can't be decoded: {' '.join(error.error_string.split())}")


def _hidden(stream: BinaryIO | None) -> AudioError | None:
    """What the reads of a file at a URL raised: libsndfile takes it for the file's end."""
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


def _read_part(file: soundfile.SoundFile, limit: int, start_seconds: float, seconds: float | None) -> FloatArray:
    """The mono mix of a part, at most `limit` frames long, of an open file at the file's own rate."""
    rate, frames = file.samplerate, file.frames
    if file.channels > MAX_CHANNELS or not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise AudioError(f"{file.channels} channels at {rate} Hz are not a recording's")
    if not frames:
        raise AudioError("no samples")
    start = round(start_seconds * rate)
    if start >= frames:
        raise AudioError(f"only {frames / rate:.2f} s long, the part begins at {start_seconds:g} s")
    lead = min(start, _LEAD_FRAMES)
    if start:
        file.seek(start - lead)
    wanted = frames - start if seconds is None else min(frames - start, ceil(seconds * rate))
    if limit < wanted and frames != _UNKNOWN_FRAMES:
        raise _too_long(limit, rate)
    waveform = _read_mono(file, lead + wanted, lead + limit)[lead:]
    if len(waveform) < wanted and frames != _UNKNOWN_FRAMES:
        raise AudioError(f"truncated: {len(waveform)} of {wanted} frames")
    return waveform


def _read_mono(file: soundfile.SoundFile, n_frames: int, limit: int) -> FloatArray:
    """The mean of the channels over the next `n_frames` frames, or as many as there are, in blocks of bounded size."""
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
            with np.errstate(over="ignore", invalid="ignore"):  # what isn't finite is refused later
                blocks.append(sum(block.T) / np.float32(file.channels))  # 30 times faster than mean(axis=1)
        count += len(block)
        if count > limit:
            raise _too_long(limit, file.samplerate)
    return blocks[0] if len(blocks) == 1 else np.concatenate([np.empty(0, np.float32), *blocks])


def _too_long(limit: int, rate: int) -> TooLongError:
    return TooLongError(f"longer than {limit / rate / 60:.3g} minutes: read it in parts")


def _to_full_scale(waveform: FloatArray) -> FloatArray:
    """`waveform` in units of full scale (see `load`); AudioError for NaN, infinity and values beyond any integer."""
    peak = max(waveform.max(initial=0), -waveform.min(initial=0))
    if not np.isfinite(peak):
        raise AudioError("NaN or infinite samples")
    if peak <= HEADROOM:
        return waveform
    for full_scale in (2**15, 2**23, 2**31):
        if peak <= full_scale:
            return waveform / np.float32(full_scale)
    raise AudioError(f"samples up to {peak:.3g} are not a waveform")


def band_centres(config: AudioConfig) -> NDArray[np.float64]:
    """The frequencies (n_mels,), Hz, at which the mel filters are largest."""
    if config.mel_scale == "slaney":
        return _slaney_hertz(np.linspace(_slaney(config.f_min), _slaney(config.f_high), config.n_mels + 2))[1:-1]
    mels = np.linspace(_mel(config.f_min), _mel(config.f_high), config.n_mels + 2)[1:-1]
    return 700 * np.expm1(mels / 1127)


def mel_bank(config: AudioConfig) -> FloatArray:
    """The mel filters (n_mels, n_fft // 2 + 1) of `config.mel_scale`.

    Kaldi's are triangles on the scale 1127 ln(1 + f / 700), each with peak 1. Slaney's (Auditory Toolbox, 1998) are
    triangles in Hz, each with area 1: peak 2 / (upper - lower edge), 1/Hz.
    """
    bins = np.arange(config.n_fft // 2 + 1, dtype=np.float64) * (config.sample_rate / config.n_fft)
    if config.mel_scale == "slaney":
        edges = _slaney_hertz(np.linspace(_slaney(config.f_min), _slaney(config.f_high), config.n_mels + 2))
        return (_triangles(bins, edges) * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)
    edges = np.linspace(_mel(config.f_min), _mel(config.f_high), config.n_mels + 2)
    return _triangles(_mel(bins), edges).astype(np.float32)


def _triangles(bins: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Triangles (n, bins) of peak 1 between `edges` (n + 2,), each from one edge over the next to the one after."""
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rising, falling))


def _mel(hertz: ArrayLike) -> NDArray[np.float64]:
    return 1127 * np.log1p(np.asarray(hertz, np.float64) / 700)


def _slaney(hertz: float) -> float:
    """Slaney's mel: 3 for every 200 Hz up to 1 kHz, above it 27 for every factor of 6.4."""
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * log(hertz / 1000) / log(6.4)


def _slaney_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15, 200 * mel / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def hann_window(config: AudioConfig) -> FloatArray:
    """The Hann window (win_length,) of `config.window`."""
    periodic = config.window == "periodic"
    return np.hanning(config.win_length + periodic)[: config.win_length].astype(np.float32)


class _BandedProduct:
    """`power @ bank.T` for a mel bank of which all but a narrow band around the diagonal is zero.

    Neighbouring mel bands look at the same few bins, so the bank is cut into small dense blocks. That saves the
    transposition that a sparse matrix product needs, and the blocks stay below the size at which OpenBLAS wakes its
    threads, which takes longer than the product.
    """

    def __init__(self, bank: FloatArray) -> None:
        self._n_mels = len(bank)
        self._blocks: list[tuple[slice, slice, FloatArray]] = []
        first = 0
        while first < len(bank):
            last = first + 1
            while last < len(bank) and (last + 1 - first) * _support(bank[first : last + 1])[1] <= _BLOCK_WEIGHTS:
                last += 1
            start, width = _support(bank[first:last])
            bins = slice(start, start + width)
            self._blocks.append((slice(first, last), bins, np.ascontiguousarray(bank[first:last, bins].T)))
            first = last

    def __call__(self, power: FloatArray, out: FloatArray) -> None:
        """Write the mel power of `power` (n_frames, n_bins) to `out` (n_frames, n_mels)."""
        for bands, bins, weights in self._blocks:
            np.matmul(power[:, bins], weights, out=out[:, bands])


def _support(filters: FloatArray) -> tuple[int, int]:
    """First bin and number of bins from the first to the last weight of some filters that isn't zero."""
    used = np.flatnonzero(filters.any(axis=0))
    return (int(used[0]), int(used[-1] - used[0] + 1)) if len(used) else (0, 0)


class LogMel:
    """Waveform (n_samples,) to normalised log-mel (n_frames, n_mels); n_frames is `config.frames(n_samples)`.

    At the defaults: pre-emphasis y[n] = x[n + 1] - a x[n]; STFT, centred with reflection, symmetric Hann window
    zero-padded to n_fft; power; Kaldi's mel bank; log(x + offset); (x - mean) / scale. Ten seconds give 640 x 256.
    `AudioConfig` says what each field changes.

    A waveform too short to be reflected (2,049 samples and one for the pre-emphasis at the defaults), or with Kaldi's
    framing shorter than a window, is first zero-padded to the shortest that can be, also an empty one. Frames are
    transformed 64 at a time, so that all intermediate results stay in the processor's cache.
    """

    def __init__(self, config: AudioConfig = _PAPER) -> None:
        self.config = config
        cut = hann_window(config), config.n_fft, config.hop_length
        kaldi = config.framing == "kaldi"
        self._power: PowerSpectra = KaldiSpectra(*cut, config.pre_emphasis) if kaldi else power_spectra(*cut)
        self._mel = _BandedProduct(mel_bank(config))

    def __call__(self, waveform: NDArray[np.floating]) -> FloatArray:
        config = self.config
        result = np.empty((config.frames(len(waveform)), config.n_mels), np.float32)
        samples = self._samples(np.asarray(waveform, np.float32))
        space = np.empty((_CHUNK_FRAMES, config.n_fft // 2 + 1), np.float32)
        for start in range(0, len(result), _CHUNK_FRAMES):
            mel = result[start : start + _CHUNK_FRAMES]
            power = space[: len(mel)]
            # The window lies at the start of the FFT rather than in its middle: the power is the same.
            self._power(samples[start * config.hop_length :], power)
            self._mel(power, out=mel)
        floor = np.add if config.log_floor == "add" else np.maximum
        floor(result, np.float32(config.log_offset), out=result)
        np.log(result, out=result)
        result -= np.float32(config.norm_mean)
        result /= np.float32(config.norm_scale)
        return result

    def _samples(self, waveform: FloatArray) -> FloatArray:
        """The waveform from the first sample under the first frame's window on.

        Centred, it is pre-emphasised and reflected; Kaldi's frames are cut from it as it is.
        """
        config = self.config
        kaldi = config.framing == "kaldi"
        shortest = config.win_length if kaldi else config.n_fft // 2 + 1 + (config.pre_emphasis > 0)
        if len(waveform) < shortest:
            waveform = np.pad(waveform, (0, shortest - len(waveform)))
        if kaldi:
            return waveform
        half = config.n_fft // 2
        reflected = np.empty(len(waveform) - (config.pre_emphasis > 0) + 2 * half, np.float32)
        inside = reflected[half : len(reflected) - half]
        if config.pre_emphasis > 0:
            np.multiply(waveform[:-1], np.float32(-config.pre_emphasis), out=inside)
            inside += waveform[1:]
        else:
            inside[:] = waveform
        reflected[:half] = inside[half:0:-1]
        reflected[len(reflected) - half :] = inside[-2 : -half - 2 : -1]
        return reflected[(config.n_fft - config.win_length) // 2 :]


def fit_length(log_mel: FloatArray, n_frames: int, silence: float) -> tuple[FloatArray, int]:
    """`log_mel` cropped, or padded with `silence`, at its end to (n_frames, F), and its frames before the padding."""
    valid_frames = min(len(log_mel), n_frames)
    padding = ((0, n_frames - valid_frames), (0, 0))
    return np.pad(log_mel[:valid_frames], padding, constant_values=silence), valid_frames
