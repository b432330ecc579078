"""Impulse responses of recording devices, as they are and as additive log-mel offsets, one number per band. No torch.

A device filters what it records. If its impulse response h is short against the front end's window, the log-mel of the
filtered sound is that of the sound plus, in every band, the logarithm of the response's power. Adding this offset to a
batch costs almost nothing (Morocutti et al. 2023 convolve the waveform with h, as `raymae.features.waveforms` does).
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import soundfile
import soxr
from fsspec.core import url_to_fs
from numpy.typing import NDArray

from raymae.audio.containers import AUDIO
from raymae.audio.decode import load
from raymae.audio.errors import AudioError
from raymae.audio.logmel import hann_window, mel_bank
from raymae.config import AudioConfig, ResponsesBy, redact

log = logging.getLogger(__name__)

MAX_SECONDS = 3.0
"""Longest impulse response, s; a longer file is taken for a recording."""
MAX_BYTES = 2**25
FLOOR = 1e-8
"""Lower limit of a band's power relative to the strongest band: every device has a noise floor."""
LEAD = 200
"""Zeros before and after a response that is resampled, samples."""
LONG_SHARE = 0.1
"""Share of a response's energy outside one window above which the log warns of it."""


@dataclass(frozen=True)
class Responses:
    """The responses of one setting, in the order of their digests, so that names and folders don't matter."""

    offsets: NDArray[np.float32]
    """(n, F): the offset that each adds to a normalised log-mel."""
    waveforms: NDArray[np.float32]
    """(n, taps): the responses at the front end's rate, zeros after their ends; convolution leaves the mean level over
    the bands as it is, as the offsets do."""
    digests: tuple[str, ...]
    """SHA-256 of the files' contents, sorted."""


def read_responses(
    names: Sequence[str], audio: AudioConfig, setting: str, used_by: ResponsesBy = "offsets"
) -> Responses:
    """Read all impulse responses of `names` (files, folders, globs, URLs).

    A warning names those whose reverberation is lost where they are used by their offsets.

    Raises ValueError that begins with `setting` and names a file that can't be read or is not usable for `audio`.
    """
    found: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    digests = []
    for address, content in _contents(names, setting):
        digest = hashlib.sha256(content).hexdigest()
        digests.append(digest)
        if digest in found:
            continue
        try:
            response, rate = _decode(content, audio)
        except AudioError as error:
            raise ValueError(f"{setting}: {redact(address)}: {error}") from None
        found[digest] = band_offsets(response, rate, audio), levelled(response, rate, audio)
        outside, window = share_outside(response, rate, audio), 1000 * audio.win_length / audio.sample_rate
        if outside > LONG_SHARE and used_by == "offsets":
            message = (
                "%s: %s: %.0f %% of the energy lies outside one window of %.0f ms; its frequency response is used, its "
                "reverberation is not"
            )
            log.warning(message, setting, redact(address), 100 * outside, window)
    digests.sort()
    offsets, waveforms = zip(*(found[digest] for digest in digests), strict=True)
    taps = max(map(len, waveforms))
    padded = [np.pad(one, (0, taps - len(one))) for one in waveforms]
    return Responses(np.stack(offsets), np.stack(padded), tuple(digests))


def band_offsets(response: NDArray[np.floating], rate: int, audio: AudioConfig) -> NDArray[np.float32]:
    """Offset (F,) of normalised log-mels that approximates convolution with `response` (n_samples,), `rate` in Hz.

    In each band it is the logarithm of the mean of |H(f)|², weighted by the mel filter. |H(f)|² is smoothed as the
    window smooths every spectrum: it is the mean spectrum of white noise through the response. H is evaluated at the
    front end's frequencies whatever `rate` is, so that no resampling filter is part of it. The offsets' mean over the
    bands is 0, since level is left to `augment.gain_db`; empty bands (no FFT bin in the filter) have offset 0.
    """
    nats, filled = _nats(response, rate, audio)
    offsets = np.zeros(audio.n_mels, np.float32)
    offsets[filled] = (nats - nats.mean()) / audio.norm_scale
    return offsets


def levelled(response: NDArray[np.floating], rate: int, audio: AudioConfig) -> NDArray[np.float32]:
    """`response` (n_samples,), `rate` in Hz, at the front end's rate (taps,), with a mean level of 0 over the bands."""
    nats, _ = _nats(response, rate, audio)
    scale = rate / audio.sample_rate * np.exp(-nats.mean() / 2)  # a sum of more samples would be louder
    padded = np.pad(response.astype(np.float64), LEAD)  # the resampler's filter reaches to both sides of the onset
    resampled = soxr.resample(padded, rate, audio.sample_rate, quality="HQ")
    return np.asarray(scale * resampled, np.float32)


def _nats(
    response: NDArray[np.floating], rate: int, audio: AudioConfig
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The logarithm of a response's power in every band that has an FFT bin, and which bands (F,) have one."""
    power = _smoothed_power(response, rate, audio)
    bank = mel_bank(audio).astype(np.float64)
    weight = bank.sum(axis=1)
    filled = weight > 0
    in_band = bank[filled] @ power / weight[filled]
    return np.log(np.maximum(in_band, FLOOR * in_band.max())), filled


def _smoothed_power(response: NDArray[np.floating], rate: int, audio: AudioConfig) -> NDArray[np.float64]:
    """The power |H(f)|² (n_fft // 2 + 1,) smoothed by the window's spectrum: a product of autocorrelations."""
    from scipy.signal import zoom_fft  # importing it takes half a second, which every job would pay

    fine = ceil((len(response) / rate * audio.sample_rate + audio.win_length) / audio.n_fft)
    size = fine * audio.n_fft  # long enough that the response's autocorrelation doesn't wrap around into the window's
    band = [0, audio.sample_rate / 2]
    power = np.abs(zoom_fft(response.astype(np.float64), band, size // 2 + 1, fs=rate, endpoint=True)) ** 2
    window = np.fft.irfft(np.abs(np.fft.rfft(hann_window(audio).astype(np.float64), size)) ** 2, size)
    smooth = np.fft.rfft(np.fft.irfft(power, size) * window / window[0]).real
    return np.maximum(smooth[::fine], 0.0)


def share_outside(response: NDArray[np.floating], rate: int, audio: AudioConfig) -> float:
    """Share of a response's energy outside the strongest segment of one window's length."""
    length = round(audio.win_length / audio.sample_rate * rate)
    energy = np.concatenate([[0.0], np.cumsum(np.square(response, dtype=np.float64))])
    best = np.max(energy[length:] - energy[: max(0, len(energy) - length)], initial=0.0) or energy[-1]
    return float(1 - best / energy[-1])


def _decode(content: bytes, audio: AudioConfig) -> tuple[NDArray[np.float32], int]:
    """Decode an impulse response: samples and sample rate, Hz; AudioError if the front end can't use it."""
    if len(content) > MAX_BYTES:
        raise AudioError(f"larger than {MAX_BYTES >> 20} MB: not an impulse response")
    try:
        rate = int(soundfile.info(io.BytesIO(content)).samplerate)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"can't be decoded: {' '.join(error.error_string.split())}") from None
    response = load(content, rate)
    seconds = len(response) / rate
    if seconds > MAX_SECONDS:
        raise AudioError(f"{seconds:.1f} s long: a device's impulse response has at most {MAX_SECONDS:g} s")
    if rate < 2 * audio.f_high:
        raise AudioError(
            f"its sample rate of {rate} Hz covers nothing above {rate / 2:g} Hz; the mel bands reach up to "
            f"{audio.f_high:g} Hz (audio.f_max), which needs at least {ceil(2 * audio.f_high)} Hz"
        )
    if not response.any():
        raise AudioError("silent: all samples are 0")
    return response, rate


def _contents(names: Sequence[str], setting: str) -> Iterator[tuple[str, bytes]]:
    """Address and content of every file that the names match."""
    for name in names:
        try:
            fs, path = url_to_fs(os.path.expanduser(name))
            if fs.isfile(path):
                paths = [path]
            else:
                below = fs.find(path) if fs.isdir(path) else fs.glob(path)
                paths = sorted(file for file in below if file.lower().endswith(AUDIO))
        except Exception as error:  # file systems have their own exceptions
            raise ValueError(f"{setting}: {redact(name)} can't be read: {redact(str(error))}") from None
        if not paths:
            raise ValueError(
                f"{setting}: there is no audio file {redact(name)}, nor one below or matching it; name files of "
                f"impulse responses ({', '.join(AUDIO)}), folders or globs"
            )
        for file in paths:
            try:
                yield file, bytes(fs.cat_file(file, start=0, end=MAX_BYTES + 1))
            except Exception as error:  # as above
                raise ValueError(f"{setting}: {redact(file)} can't be read: {redact(str(error))}") from None
