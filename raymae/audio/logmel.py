"""Log-mel spectrograms in NumPy, without torch: mel filter banks and the front end `LogMel`."""

from __future__ import annotations

from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymae.audio.decode import FloatArray
from raymae.audio.power_spectrum import KaldiSpectra, PowerSpectra, power_spectra
from raymae.config import CONSTANT, AudioConfig

_PAPER = AudioConfig()

_CHUNK_FRAMES = 64

_BLOCK_WEIGHTS = 2_000


def band_centres(config: AudioConfig) -> NDArray[np.float64]:
    """Centre frequencies (n_mels,), Hz, at which the mel filters peak."""
    if config.mel_scale == "slaney":
        return _slaney_hertz(np.linspace(_slaney(config.f_min), _slaney(config.f_high), config.n_mels + 2))[1:-1]
    mels = np.linspace(_mel(config.f_min), _mel(config.f_high), config.n_mels + 2)[1:-1]
    return 700 * np.expm1(mels / 1127)


def mel_bank(config: AudioConfig) -> FloatArray:
    """Mel filter bank (n_mels, n_fft // 2 + 1) of `config.mel_scale`.

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
    """Triangles (n, bins) of peak 1: filter i rises from `edges[i]` (n + 2,) to edge i + 1 and falls to edge i + 2."""
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rising, falling))


def _mel(hertz: ArrayLike) -> NDArray[np.float64]:
    return 1127 * np.log1p(np.asarray(hertz, np.float64) / 700)


def _slaney(hertz: float) -> float:
    """Slaney's mel scale: 3 for every 200 Hz up to 1 kHz, above it 27 for every factor of 6.4."""
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * log(hertz / 1000) / log(6.4)


def _slaney_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15, 200 * mel / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def hann_window(config: AudioConfig) -> FloatArray:
    """Hann window (win_length,) of `config.window`."""
    periodic = config.window == "periodic"
    return np.hanning(config.win_length + periodic)[: config.win_length].astype(np.float32)


class _BandedProduct:
    """`power @ bank.T` for a mel bank that is zero outside a narrow band around the diagonal.

    Neighbouring mel bands use the same few bins, so the bank is cut into small dense blocks. That saves the
    transposition that a sparse matrix product needs, and the blocks stay below the size at which OpenBLAS starts its
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
    """First bin and number of bins from the first to the last non-zero weight of some filters."""
    used = np.flatnonzero(filters.any(axis=0))
    return (int(used[0]), int(used[-1] - used[0] + 1)) if len(used) else (0, 0)


class LogMel:
    """Waveform (n_samples,) to normalised log-mel (n_frames, n_mels); n_frames is `config.frames(n_samples)`.

    The defaults are the front end of Cai & Li (ICME 2024 Grand Challenge, section 3) with the details of its authors'
    public code: pre-emphasis y[n] = x[n + 1] - a x[n]; STFT with centred frames and reflection padding, symmetric Hann
    window zero-padded to n_fft; power; Kaldi's mel bank; log(x + offset); (x - mean) / scale. Ten seconds give
    640 x 256. `AudioConfig` documents the fields, `raymae.config.FRONT_ENDS` are other front ends.

    A waveform that is too short (for reflection: fewer than 2,049 samples at the defaults, and one more for the
    pre-emphasis; with Kaldi's framing: shorter than a window), even an empty one, is first zero-padded to the shortest
    length that works. Frames are transformed 64 at a time, so that intermediate results stay in the processor's cache.
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
            # The window lies at the start of the FFT instead of in its middle: the power is the same.
            self._power(samples[start * config.hop_length :], power)
            self._mel(power, out=mel)
        floor = np.add if config.log_floor == "add" else np.maximum
        floor(result, np.float32(config.log_offset), out=result)
        np.log(result, out=result)
        result -= np.float32(config.norm_mean)
        result /= np.float32(config.norm_scale)
        return result

    def _samples(self, waveform: FloatArray) -> FloatArray:
        """The waveform from the first sample of the first frame's window.

        With centred framing it is pre-emphasised and reflected; Kaldi's framing cuts it as it is.
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
    """Crop `log_mel` or pad its end with `silence` to (n_frames, F); returns it and its frames before the padding."""
    valid_frames = min(len(log_mel), n_frames)
    padding = ((0, n_frames - valid_frames), (0, 0))
    return np.pad(log_mel[:valid_frames], padding, constant_values=silence), valid_frames


def is_silent(log_mel: NDArray[np.floating], valid_frames: int) -> bool:
    """Whether no band of a log-mel (T, F) changes over its valid frames, as of a muted recording.

    No patch of such a clip is valid (`raymae.models.patches.valid_patches`), so that a model has nothing to go by.
    """
    recorded = log_mel[: max(valid_frames, 2)]  # a single frame is compared with the padding after it
    return bool((recorded.max(0) - recorded.min(0)).max() <= CONSTANT)
