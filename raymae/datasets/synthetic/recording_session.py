"""A recording session: its sources, room and level are drawn once and shared by its clips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from raymae.datasets.synthetic.scenes import City, Device, Scene
from raymae.datasets.synthetic.sources import (
    GRAINED,
    GRAINS,
    KNOT_HERTZ,
    SOURCES,
    SUSTAINED,
    Curve,
    Player,
    Wave,
    coloured_noise,
    decay,
    onsets,
    response,
    scatter,
    slope,
    unit_rms,
)

SESSION_LEVEL = 2.5
"""Spread of a source's level from session to session, dB."""
SESSION_BED = 1.0
"""Spread of the knots of the noise bed from session to session, dB."""
CLIP_LEVEL = 1.5
"""Spread of a source's level from clip to clip, dB."""
SECONDS = (2.0, 3.6)
"""Shortest and longest clip, seconds."""
REGULARITY = {"steps": 20.0, "voices": 3.0, "wheels": 20.0}
"""Regularity of the sources whose timing doesn't depend on the scene."""
BED_TILT = -4.0
"""Decibels per octave of the noise bed under every scene."""
BED_LEVEL = -8.0
"""Level of the noise bed, dB."""
PEAK = 0.95
"""Largest absolute sample of a clip."""


@dataclass(frozen=True)
class Session:
    """Everything that the clips of a session share."""

    rate: int
    bed: Curve
    levels: Curve
    rates: dict[str, float]
    regularity: dict[str, float]
    players: dict[str, Player]
    grains: dict[str, list[Wave]]
    room: Wave
    device: Device
    rms: float

    @classmethod
    def draw(cls, rng: np.random.Generator, name: str, scene: Scene, city: City, device: Device, rate: int) -> Session:
        """Draw a session in `scene` (called `name`) in `city`, recorded with `device` at `rate` Hz."""
        octaves = city.rates[name] + rng.normal(0, 0.3, len(GRAINED))
        timbres = {source: city.timbre(rng, source) for source in SOURCES}
        ring_seconds = scene.ring_seconds * 2 ** rng.normal(0, 0.4)
        envelope = decay(ring_seconds, rate)
        reverberation = envelope * rng.standard_normal(len(envelope))
        room = np.concatenate([[1.0], rng.uniform(0.3, 0.6) * reverberation / np.linalg.norm(reverberation)])
        return cls(
            rate=rate,
            bed=slope(BED_TILT) + city.bed + rng.normal(0, SESSION_BED, len(KNOT_HERTZ)),
            levels=np.array(scene.levels) + city.levels[name] + rng.normal(0, SESSION_LEVEL, len(SOURCES)),
            rates=dict(zip(GRAINED, np.array(scene.rates) * 2**octaves, strict=True)),
            regularity={**REGULARITY, "clanks": scene.regularity, "chirps": scene.regularity},
            players={source: make(rng, timbres[source]) for source, make in SUSTAINED.items()},
            grains={
                source: [make(rng, timbres[source], rate) for _ in range(GRAINS)] for source, make in GRAINED.items()
            },
            room=room.astype(np.float32),
            device=device,
            rms=10 ** (rng.normal(-26, 2) / 20),
        )

    def clip(self, rng: np.random.Generator) -> Wave:
        """A recording of 2.0 to 3.6 s in [-1, 1], (n_samples,)."""
        n = int(rng.uniform(*SECONDS) * self.rate)
        gains = 10 ** ((self.levels + rng.normal(0, CLIP_LEVEL, len(SOURCES))) / 20)
        wave = np.float32(10 ** (BED_LEVEL / 20)) * coloured_noise(rng, n, self.rate, self.bed)
        for source, gain in zip(SOURCES, gains, strict=True):
            wave += np.float32(gain) * self._play(source, rng, n)
        wave = self._record(self._reverberate(wave), rng)
        return wave * np.float32(min(self.rms, PEAK / np.abs(wave).max()))

    def _play(self, source: str, rng: np.random.Generator, n: int) -> Wave:
        if source in self.players:
            return self.players[source](rng, n, self.rate)
        times = onsets(rng, self.rates[source], self.regularity[source], n / self.rate)
        return scatter(rng, self.grains[source], times, n, self.rate)

    def _reverberate(self, wave: Wave) -> Wave:
        """The wave in the session's room, through the device's frequency response."""
        n_fft = next_fast_len(len(wave) + len(self.room) - 1, real=True)
        spectrum = rfft(wave, n_fft) * rfft(self.room, n_fft) * response(n_fft, self.rate, self.device.response)
        return unit_rms(irfft(spectrum, n_fft)[: len(wave)])

    def _record(self, wave: Wave, rng: np.random.Generator) -> Wave:
        """Add the device's noise and apply its automatic gain; unit RMS."""
        floor = coloured_noise(rng, len(wave), self.rate, self.device.floor)
        wave = wave + np.float32(10 ** (self.device.floor_level / 20)) * floor
        return unit_rms(wave * self._automatic_gain(wave))

    def _automatic_gain(self, wave: Wave) -> Wave:
        """Gains (n,) that follow the mean power of blocks of 10 ms."""
        block = self.rate // 100
        n_blocks = len(wave) // block
        power = np.square(wave[: n_blocks * block]).reshape(n_blocks, block).mean(1)
        keep = np.exp(-0.01 / self.device.gain_seconds)
        # starting from the mean power (1) avoids amplifying the first moments
        from scipy.signal import lfilter  # takes a second to import, in every worker

        followed, _ = lfilter([1 - keep], [1, -keep], power, zi=[keep])
        gains = followed ** (-self.device.gain_control / 2)
        return np.interp(np.arange(len(wave)), (np.arange(n_blocks) + 0.5) * block, gains).astype(np.float32)
