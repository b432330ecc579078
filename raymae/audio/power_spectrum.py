"""Power spectra of windowed frames, with compiled code for the paper's sizes: 3072 samples, padded to an FFT of 4096.

scipy's FFT uses the instructions that every x86-64 has, and windowing, padding and power are separate passes over
memory. The compiled code does all of them for one frame within the first-level cache and uses the processor's widest
vectors. The real transform is a complex one of half the length (even samples real, odd ones imaginary): two radix-4
steps that leave out the zero quarter, then sixteen transforms of 128 side by side by Stockham's autosort (radix 4, 4,
8), and the unpacking to powers. Lengths are constants of the compiled code: with variables it isn't vectorised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.fft
from numba import njit
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

N_FFT, LONGEST_WINDOW = 4096, 3072
HALF = N_FFT // 2
LANES = 16  # transforms side by side: one AVX-512 vector
QUARTER, SIXTEENTH = HALF // 4, HALF // 16
_FOURTH, _ROOT_HALF = np.float32(0.25), np.float32(np.sqrt(0.5))


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function with numba at its first call, for this processor, without the GIL.

    The compiled code is cached beside the source or in the user's cache folder. Fast-math is off: it gains nothing
    here, and with it freshly compiled code and code from the cache round differently.
    """
    try:
        return njit(error_model="numpy", nogil=True, cache=True)(function)
    except RuntimeError:  # there is no folder for a cache
        return njit(error_model="numpy", nogil=True)(function)


def power_spectra(window: FloatArray, n_fft: int, hop_length: int) -> PowerSpectra:
    """The fastest implementation for frames `hop_length` apart, windowed and zero-padded to `n_fft`."""
    compiled = n_fft == N_FFT and N_FFT // 2 <= len(window) <= LONGEST_WINDOW
    return (CompiledSpectra if compiled else PowerSpectra)(window, n_fft, hop_length)


class PowerSpectra:
    """|rfft(frame * window, n_fft)|^2 of every frame, by scipy."""

    def __init__(self, window: FloatArray, n_fft: int, hop_length: int) -> None:
        self.window, self.n_fft, self.hop_length = np.asarray(window, np.float32), n_fft, hop_length

    def __call__(self, samples: FloatArray, out: FloatArray) -> None:
        """Write the power (n_frames, n_fft // 2 + 1) of the frames that start at samples 0, hop, 2 hop, … to `out`."""
        frames = sliding_window_view(samples, len(self.window))[:: self.hop_length]
        padded = np.zeros((len(out), self.n_fft), np.float32)
        self.cut(frames[: len(out)], out=padded[:, : len(self.window)])
        spectrum = scipy.fft.rfft(padded, axis=1)
        np.square(spectrum.real, out=out)
        out += np.square(spectrum.imag)

    def cut(self, frames: FloatArray, out: FloatArray) -> None:
        """Write the windowed frames (n_frames, win_length) to `out`."""
        np.multiply(frames, self.window, out=out)


class KaldiSpectra(PowerSpectra):
    """Power spectra of frames with their mean removed and pre-emphasis applied, frame by frame.

    The order is Kaldi's (feature-window.cc, ProcessWindow); the sample before a frame's first is assumed equal to it.
    """

    def __init__(self, window: FloatArray, n_fft: int, hop_length: int, pre_emphasis: float) -> None:
        super().__init__(window, n_fft, hop_length)
        self.pre_emphasis = np.float32(pre_emphasis)

    def cut(self, frames: FloatArray, out: FloatArray) -> None:
        """Write the windowed frames (n_frames, win_length) to `out`."""
        np.subtract(frames, frames.mean(axis=1, keepdims=True), out=out)
        out[:, 1:] -= self.pre_emphasis * out[:, :-1]
        out[:, 0] *= 1 - self.pre_emphasis
        out *= self.window


class CompiledSpectra(PowerSpectra):
    """Compiled version for n_fft = 4096 and windows of 2048 to 3072 samples; every frame reads 3072 samples."""

    def __init__(self, window: FloatArray, n_fft: int, hop_length: int) -> None:
        super().__init__(np.pad(window, (0, LONGEST_WINDOW - len(window))), n_fft, hop_length)
        self._tables = [_turns(HALF), _turns(HALF // 4), _turns(HALF // 16), _turns(HALF // 64), _unpacking()]

    def __call__(self, samples: FloatArray, out: FloatArray) -> None:
        """Write the power (n_frames, 2049) to `out`; ValueError if there are too few samples."""
        if len(samples) < (len(out) - 1) * self.hop_length + LONGEST_WINDOW:
            raise ValueError(f"{len(samples)} samples are too few for {len(out)} frames")
        buffers = np.empty((3, 2 * HALF), np.float32)
        _spectra(samples, self.hop_length, self.window, *self._tables, *buffers, out)


def _turns(length: int) -> FloatArray:
    """Twiddle factors of a radix-4 step: cosine and sine of -k/n, -2k/n and -3k/n turns, k < n/4, row by row."""
    turns = np.outer([1, 2, 3], np.arange(length // 4)) / length
    return np.stack([np.cos(2 * np.pi * turns), -np.sin(2 * np.pi * turns)], axis=1).astype(np.float32).ravel()


def _unpacking() -> FloatArray:
    """Cosine and sine of -k/4096 turns, 0 < k < 1024, row by row."""
    turns = 2 * np.pi * np.arange(1, HALF // 2) / N_FFT
    return np.concatenate([np.cos(turns), -np.sin(turns)]).astype(np.float32)


@_compiled
def _times(re, im, cos, sin):  # type: ignore[no-untyped-def]
    return re * cos - im * sin, re * sin + im * cos


@_compiled
def _dft4(ar, ai, br, bi, cr, ci, dr, di):  # type: ignore[no-untyped-def]
    """DFT of four complex numbers; real and imaginary parts alternate."""
    sr, si, tr, ti = ar + cr, ai + ci, ar - cr, ai - ci
    ur, ui, vr, vi = br + dr, bi + di, br - dr, bi - di
    return sr + ur, si + ui, tr + vi, ti - vr, sr - ur, si - ui, tr - vi, ti + vr


@_compiled
def _first(x, window, t, a):  # type: ignore[no-untyped-def]
    """Windowing and the first radix-4 step; real parts go to the first half of `a`, imaginary ones to the second."""
    for n in range(QUARTER):
        i, j, k = 2 * n, 2 * n + 2 * QUARTER, 2 * n + 4 * QUARTER
        zero = np.float32(0)
        y = _dft4(
            x[i] * window[i],
            x[i + 1] * window[i + 1],
            x[j] * window[j],
            x[j + 1] * window[j + 1],
            x[k] * window[k],
            x[k + 1] * window[k + 1],
            zero,
            zero,
        )
        b, c, d = n + QUARTER, n + 2 * QUARTER, n + 3 * QUARTER
        a[n], a[n + HALF] = y[0], y[1]
        a[b], a[b + HALF] = _times(y[2], y[3], t[n], t[n + QUARTER])
        a[c], a[c + HALF] = _times(y[4], y[5], t[n + 2 * QUARTER], t[n + 3 * QUARTER])
        a[d], a[d + HALF] = _times(y[6], y[7], t[n + 4 * QUARTER], t[n + 5 * QUARTER])


@_compiled
def _second(a, t, out):  # type: ignore[no-untyped-def]
    """Radix-4 step of one quarter; real and imaginary parts are interleaved in the output."""
    for n in range(SIXTEENTH):
        i, j, k = n + SIXTEENTH, n + 2 * SIXTEENTH, n + 3 * SIXTEENTH
        y = _dft4(a[n], a[n + HALF], a[i], a[i + HALF], a[j], a[j + HALF], a[k], a[k + HALF])
        out[2 * n], out[2 * n + 1] = y[0], y[1]
        out[2 * i], out[2 * i + 1] = _times(y[2], y[3], t[n], t[n + SIXTEENTH])
        out[2 * j], out[2 * j + 1] = _times(y[4], y[5], t[n + 2 * SIXTEENTH], t[n + 3 * SIXTEENTH])
        out[2 * k], out[2 * k + 1] = _times(y[6], y[7], t[n + 4 * SIXTEENTH], t[n + 5 * SIXTEENTH])


@_compiled
def _interleave(blocks, out):  # type: ignore[no-untyped-def]
    """Transpose sixteen transforms from one after the other to side by side: block 4 i + j becomes lane i + 4 j.

    A complex number is moved as one value of 64 bits, which halves the moves.
    """
    for n in range(SIXTEENTH):
        for j in range(4):
            for i in range(4):
                out[LANES * n + i + 4 * j] = blocks[SIXTEENTH * (4 * i + j) + n]


@_compiled
def _third(a, t, row, out):  # type: ignore[no-untyped-def]
    """Radix-4 step of one row of the transforms of 128; real and imaginary parts are separated again."""
    rows = SIXTEENTH // 4
    for n in range(LANES):
        h, i, j, k = 2 * n, 2 * (n + QUARTER), 2 * (n + 2 * QUARTER), 2 * (n + 3 * QUARTER)
        y = _dft4(a[h], a[h + 1], a[i], a[i + 1], a[j], a[j + 1], a[k], a[k + 1])
        b, c, d = n + LANES, n + 2 * LANES, n + 3 * LANES
        out[n], out[n + HALF] = y[0], y[1]
        out[b], out[b + HALF] = _times(y[2], y[3], t[row], t[row + rows])
        out[c], out[c + HALF] = _times(y[4], y[5], t[row + 2 * rows], t[row + 3 * rows])
        out[d], out[d + HALF] = _times(y[6], y[7], t[row + 4 * rows], t[row + 5 * rows])


@_compiled
def _fourth(a, t, row, out):  # type: ignore[no-untyped-def]
    """Radix-4 step of one row of the transforms of 32."""
    rows, size = SIXTEENTH // 16, 4 * LANES
    for n in range(size):
        i, j, k = n + QUARTER, n + 2 * QUARTER, n + 3 * QUARTER
        y = _dft4(a[n], a[n + HALF], a[i], a[i + HALF], a[j], a[j + HALF], a[k], a[k + HALF])
        b, c, d = n + size, n + 2 * size, n + 3 * size
        out[n], out[n + HALF] = y[0], y[1]
        out[b], out[b + HALF] = _times(y[2], y[3], t[row], t[row + rows])
        out[c], out[c + HALF] = _times(y[4], y[5], t[row + 2 * rows], t[row + 3 * rows])
        out[d], out[d + HALF] = _times(y[6], y[7], t[row + 4 * rows], t[row + 5 * rows])


@_compiled
def _fifth(a, out):  # type: ignore[no-untyped-def]
    """The last step, radix 8: even and odd inputs separately, the odd ones rotated by multiples of an eighth turn."""
    step = HALF // 8
    for n in range(step):
        b, c, d, e, f, g, h = (
            n + step,
            n + 2 * step,
            n + 3 * step,
            n + 4 * step,
            n + 5 * step,
            n + 6 * step,
            n + 7 * step,
        )
        y = _dft4(a[n], a[n + HALF], a[c], a[c + HALF], a[e], a[e + HALF], a[g], a[g + HALF])
        z = _dft4(a[b], a[b + HALF], a[d], a[d + HALF], a[f], a[f + HALF], a[h], a[h + HALF])
        out[n], out[n + HALF] = y[0] + z[0], y[1] + z[1]
        out[e], out[e + HALF] = y[0] - z[0], y[1] - z[1]
        re, im = (z[2] + z[3]) * _ROOT_HALF, (z[3] - z[2]) * _ROOT_HALF
        out[b], out[b + HALF] = y[2] + re, y[3] + im
        out[f], out[f + HALF] = y[2] - re, y[3] - im
        out[c], out[c + HALF] = y[4] + z[5], y[5] - z[4]
        out[g], out[g + HALF] = y[4] - z[5], y[5] + z[4]
        re, im = (z[7] - z[6]) * _ROOT_HALF, (z[6] + z[7]) * -_ROOT_HALF
        out[d], out[d + HALF] = y[6] + re, y[7] + im
        out[h], out[h + HALF] = y[6] - re, y[7] - im


@_compiled
def _power(ahead, back, t, low, high):  # type: ignore[no-untyped-def]
    """Power of the bins k and 2048 - k of the real transform, 0 < k < 1024."""
    last = HALF // 2 - 2
    for n in range(HALF // 2 - 1):
        ar, ai, br, bi = ahead[n], ahead[n + HALF], back[last - n], back[last - n + HALF]
        tr, ti = _times(ai + bi, br - ar, t[n], t[n + last + 1])
        pr, pi, qr, qi = ar + br + tr, ai - bi + ti, ar + br - tr, ai - bi - ti
        low[n] = (pr * pr + pi * pi) * _FOURTH
        high[last - n] = (qr * qr + qi * qi) * _FOURTH


@_compiled
def _spectra(samples, hop, window, turns1, turns2, turns3, turns4, unpacking, a, b, c, out):  # type: ignore[no-untyped-def]
    middle = HALF // 2
    b64, c64 = b.view(np.float64), c.view(np.float64)
    for frame in range(len(out)):
        _first(samples[frame * hop :], window, turns1, a)
        for quarter in range(4):
            _second(a[quarter * QUARTER :], turns2, b[2 * quarter * QUARTER :])
        _interleave(b64, c64)
        for row in range(SIXTEENTH // 4):
            _third(c[2 * LANES * row :], turns3, row, a[4 * LANES * row :])
        for row in range(SIXTEENTH // 16):
            _fourth(a[4 * LANES * row :], turns4, row, b[16 * LANES * row :])
        _fifth(b, a)
        power = out[frame]
        power[0], power[HALF] = (a[0] + a[HALF]) ** 2, (a[0] - a[HALF]) ** 2
        power[middle] = a[middle] ** 2 + a[middle + HALF] ** 2
        _power(a[1:], a[middle + 1 :], unpacking, power[1:], power[middle + 1 :])
