"""The bank of sound sources shared by all scenes.

A source is drawn once per session with a `Timbre` and then rendered for every clip of the session: sustained sources
(`wind`, `hum`, `engine`) last as long as the clip, the others are grains, short sounds of unit RMS placed at the onsets
of an event train.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfftfreq

Wave = NDArray[np.float32]
Curve = NDArray[np.float64]

KNOT_HERTZ = np.geomspace(60.0, 16_000.0, 8)
"""Knots of smooth frequency responses, Hz."""
GRID_HERTZ = np.geomspace(40.0, 24_000.0, 128)
TABLE_SIZE = 2048
GRAINS = 4
"""Variants of each grain in a session."""


@dataclass(frozen=True)
class Timbre:
    """Deviation of a source from its default sound."""

    pitch: float
    """Octaves."""
    tilt: float
    """Decibels per octave."""
    length: float
    """Octaves of duration or of modulation period."""


def response(n_fft: int, rate: int, knots: Curve) -> Wave:
    """Gains (n_fft // 2 + 1,) of a smooth frequency response, `knots` (8,) in decibels at `KNOT_HERTZ`."""
    gains = 10 ** (np.interp(np.log(GRID_HERTZ), np.log(KNOT_HERTZ), knots) / 20)
    return np.interp(rfftfreq(n_fft, 1 / rate), GRID_HERTZ, gains).astype(np.float32)


def slope(tilt: float) -> Curve:
    """Knots (8,) in decibels of a straight line of `tilt` decibels per octave through 0 dB at 1 kHz."""
    return np.asarray(tilt * np.log2(KNOT_HERTZ / 1000.0))


def unit_rms(wave: NDArray[np.floating]) -> Wave:
    """The wave scaled to a root mean square of 1."""
    return (wave / np.sqrt(np.mean(np.square(wave)))).astype(np.float32, copy=False)


def coloured_noise(rng: np.random.Generator, n: int, rate: int, knots: Curve) -> Wave:
    """Gaussian noise (n,) of unit RMS with a smooth spectrum, `knots` (8,) in decibels at `KNOT_HERTZ`."""
    n_fft = next_fast_len(n, real=True)
    # a sum over so many bins is Gaussian for any distribution, and uniform numbers cost a third of normal ones
    spectrum = (rng.random((n_fft // 2 + 1, 2), dtype=np.float32) - np.float32(0.5)).view(np.complex64)[:, 0]
    return unit_rms(irfft(spectrum * response(n_fft, rate, knots), n_fft)[:n])


def wander(rng: np.random.Generator, n: int, rate: int, seconds: float) -> Wave:
    """A slowly varying Gaussian signal (n,) of about unit variance, with a knot every `seconds`."""
    n_knots = int(n / rate / seconds) + 3
    position = np.arange(n) / (rate * seconds) + rng.random()
    return np.interp(position, np.arange(n_knots), rng.standard_normal(n_knots)).astype(np.float32)


def oscillate(table: Wave, phase: NDArray[np.floating]) -> Wave:
    """Wavetable oscillator: a period (TABLE_SIZE,) read along `phase` (n,), in periods."""
    return table[(phase * TABLE_SIZE).astype(np.int64) % TABLE_SIZE]


def period(rng: np.random.Generator, amplitudes: Curve) -> Wave:
    """One period of a sum of harmonics with random phases."""
    spectrum = np.zeros(TABLE_SIZE // 2 + 1, dtype=np.complex128)
    spectrum[1 : len(amplitudes) + 1] = amplitudes * np.exp(2j * np.pi * rng.random(len(amplitudes)))
    return unit_rms(irfft(spectrum, TABLE_SIZE))


# Sustained sources: (rng, timbre) -> player of (rng, n, rate) ------------------------------------------------------

Player = Callable[[np.random.Generator, int, int], Wave]


def wind(rng: np.random.Generator, timbre: Timbre) -> Player:
    """Low noise in gusts."""
    knots = slope(timbre.tilt - 7.0) + rng.normal(0, 2, len(KNOT_HERTZ))
    gust_seconds = 0.7 * 2**timbre.length

    def play(rng: np.random.Generator, n: int, rate: int) -> Wave:
        return coloured_noise(rng, n, rate, knots) * np.exp(0.7 * wander(rng, n, rate, gust_seconds))

    return play


def hum(rng: np.random.Generator, timbre: Timbre) -> Player:
    """A tone with harmonics, hardly modulated: ventilation, transformers."""
    hertz = 110.0 * 2 ** (timbre.pitch + rng.normal(0, 0.1))
    table = period(rng, rng.gamma(1.0, 1.0, 16) * np.arange(1, 17) ** ((timbre.tilt - 5.0) / 6.0))

    def play(rng: np.random.Generator, n: int, rate: int) -> Wave:
        tone = oscillate(table, np.arange(n) * (hertz / rate) + rng.random())
        return tone * np.exp(0.15 * wander(rng, n, rate, 0.3))

    return play


def engine(rng: np.random.Generator, timbre: Timbre) -> Player:
    """Harmonics and roaring noise that follow the revolutions."""
    hertz = 55.0 * 2 ** (timbre.pitch + rng.normal(0, 0.1))
    table = period(rng, rng.gamma(2.0, 1.0, 40) * np.arange(1, 41) ** ((timbre.tilt - 4.0) / 6.0))
    roar = slope(timbre.tilt - 4.0)
    rev_seconds = 1.5 * 2**timbre.length

    def play(rng: np.random.Generator, n: int, rate: int) -> Wave:
        revolutions = wander(rng, n, rate, rev_seconds)
        tone = oscillate(table, np.cumsum(hertz / rate * 2 ** (0.4 * revolutions)))
        return (0.7 * tone + 0.5 * coloured_noise(rng, n, rate, roar)) * np.exp(0.4 * revolutions)

    return play


# Grains: (rng, timbre, rate) -> one short sound ---------------------------------------------------------------------


def decay(seconds: float, rate: int) -> Wave:
    """An exponential decay (n,) to -60 dB over `seconds`."""
    n = int(seconds * rate)
    return np.exp(np.linspace(0, np.log(1e-3), n, dtype=np.float32))


def step(rng: np.random.Generator, timbre: Timbre, rate: int) -> Wave:
    """A footstep: a thud with some grit."""
    envelope = decay(0.12 * 2 ** (timbre.length + rng.normal(0, 0.15)), rate)
    thud_and_grit = np.maximum(slope(timbre.tilt - 6.0), slope(timbre.tilt + 2.0) - 12.0)
    return unit_rms(envelope * coloured_noise(rng, len(envelope), rate, thud_and_grit))


def syllable(rng: np.random.Generator, timbre: Timbre, rate: int) -> Wave:
    """A voiced syllable: gliding harmonics under two formants, after a breath of noise."""
    n = int(rate * 0.2 * 2 ** (0.5 * timbre.length + rng.normal(0, 0.3)))
    hertz = 160.0 * 2 ** (timbre.pitch + rng.normal(0, 0.15))
    harmonics = hertz * np.arange(1, int(6000.0 / hertz))
    formants = np.array([rng.uniform(300, 800), rng.uniform(900, 2400)]) * 2 ** (timbre.pitch / 3)
    peaks = np.exp(-(((harmonics[:, None] - formants) / 180.0) ** 2)) @ np.array([1.0, 0.6])
    table = period(rng, (peaks + 0.03) * (harmonics / 500.0) ** (timbre.tilt / 6.0))
    glide = 2 ** np.linspace(0, rng.normal(0, 0.25), n)
    voiced = oscillate(table, np.cumsum(hertz / rate * glide)) * np.hanning(n).astype(np.float32)
    breath = coloured_noise(rng, n, rate, slope(timbre.tilt + 3.0)) * np.hanning(2 * n)[n:].astype(np.float32) ** 6
    return unit_rms(voiced + 0.4 * breath)


def clank(rng: np.random.Generator, timbre: Timbre, rate: int) -> Wave:
    """A hard object is struck: decaying inharmonic partials."""
    envelope = decay(0.3 * 2 ** (timbre.length + rng.normal(0, 0.2)), rate)
    seconds = np.arange(len(envelope), dtype=np.float32) / np.float32(rate)
    wave = 0.3 * envelope**3 * coloured_noise(rng, len(envelope), rate, slope(timbre.tilt))
    for ratio in np.cumprod(rng.uniform(1.2, 1.6, 5)):
        hertz = min(700.0 * 2**timbre.pitch * ratio, 0.45 * rate)
        partial = np.sin(np.float32(2 * np.pi * hertz) * seconds + np.float32(rng.uniform(0, 2 * np.pi)))
        wave += np.float32(ratio ** ((timbre.tilt - 2.0) / 6.0)) * envelope * partial
    return unit_rms(wave)


def chirp(rng: np.random.Generator, timbre: Timbre, rate: int) -> Wave:
    """A gliding tone: birds, brakes, signals."""
    n = int(rate * 0.15 * 2 ** (timbre.length + rng.normal(0, 0.3)))
    hertz = min(2600.0 * 2 ** (timbre.pitch + rng.normal(0, 0.15)), 0.3 * rate)
    glide = 2 ** (np.linspace(-0.5, 0.5, n) * (0.6 + rng.normal(0, 0.2)))
    return unit_rms(np.sin(2 * np.pi * np.cumsum(hertz / rate * glide)) * np.hanning(n))


def joint(rng: np.random.Generator, timbre: Timbre, rate: int) -> Wave:
    """Wheels on a rail joint: a double thump."""
    envelope = decay(0.2 * 2**timbre.length, rate)
    thump = envelope * coloured_noise(rng, len(envelope), rate, slope(timbre.tilt - 3.0))
    gap = int(rate * 0.11 * 2**timbre.pitch)
    return unit_rms(np.pad(thump, (0, gap)) + 0.8 * np.pad(thump, (gap, 0)))


SUSTAINED = {"wind": wind, "hum": hum, "engine": engine}
GRAINED = {"steps": step, "voices": syllable, "clanks": clank, "chirps": chirp, "wheels": joint}
SOURCES = (*SUSTAINED, *GRAINED)


def onsets(rng: np.random.Generator, per_second: float, regularity: float, seconds: float) -> Curve:
    """Times of events, seconds, with gamma-distributed gaps: Poisson at regularity 1, nearly periodic at large ones."""
    n = int(2 * per_second * seconds) + 8
    times = np.cumsum(rng.gamma(regularity, 1 / (per_second * regularity), n)) - rng.uniform(0.5, 1.5) / per_second
    return times[(times >= 0) & (times < seconds)]


def scatter(rng: np.random.Generator, grains: list[Wave], times: Curve, n: int, rate: int) -> Wave:
    """An event train (n,): a random grain with a random gain at each of `times` (seconds)."""
    wave = np.zeros(n, dtype=np.float32)
    for time in times:
        grain = grains[rng.integers(len(grains))][: n - int(time * rate)]
        wave[int(time * rate) :][: len(grain)] += np.float32(np.exp(rng.normal(0, 0.3))) * grain
    return wave
