"""Parameters of scenes, cities and devices, applied to the shared sources.

Scenes are close to one another on purpose: they differ in how loud and how frequent the same sources are, how regular
their timing is and how long the room rings. The numbers were chosen for difficulty (see the package's docstring) and
describe no real place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raymae.datasets.synthetic.sources import GRAINED, KNOT_HERTZ, SOURCES, Curve, Timbre

CITY_TIMBRE = 0.4
"""Spread of a city's timbres, as a share of TIMBRE_SPREAD."""
SESSION_TIMBRE = 0.5
"""Spread of a session's timbres around its city's, as a share of TIMBRE_SPREAD."""
TIMBRE_SPREAD = np.array([0.3, 1.2, 0.3])
"""Spread of pitch (octaves), tilt (dB per octave) and length (octaves)."""
CITY_LEVEL = 1.0
"""Spread of a source's level in one scene from city to city, dB."""
CITY_BED = 1.0
"""Spread of the knots of a city's noise bed, dB."""
DEVICE_RESPONSE = 1.5
"""Spread of the knots of a device's frequency response, dB."""
UNSEEN_CITY_FAR = 4.8
"""Factor on the spreads of the held-out city."""
UNSEEN_DEVICE_FAR = 4.0
"""Factor on the spread of the held-out device's frequency response."""


@dataclass(frozen=True)
class Scene:
    """A kind of place."""

    levels: tuple[float, ...]
    """Decibels over the noise bed of wind, hum, engine, steps, voices, clanks, chirps, wheels (SOURCES)."""
    rates: tuple[float, ...]
    """Events per second of steps, voices, clanks, chirps, wheels (GRAINED)."""
    regularity: float
    """Regularity of clanks and chirps (see `sources.onsets`)."""
    ring_seconds: float
    """Reverberation time, seconds."""


SCENES = {
    "airport": Scene((-27, 16, -20, 4, 2, -14, 10, -25), (1.2, 3.0, 0.6, 1.4, 0.5), 6, 1.4),
    "shopping_mall": Scene((-27, -6, -27, 18, 9, 4, -10, -25), (3.0, 7.0, 1.2, 0.5, 0.5), 1, 0.9),
    "bus": Scene((-16, -6, 22, -19, 5, 10, -10, -5), (0.7, 2.2, 2.2, 0.5, 0.9), 1, 0.12),
    "metro": Scene((-2, 10, -2, -19, -1, -3, 13, 23), (0.7, 2.0, 0.8, 0.7, 1.6), 2, 0.3),
    "park": Scene((18, -27, -20, 4, -5, -21, 16, -25), (1.8, 1.2, 0.3, 3.2, 0.4), 1, 0.1),
    "public_square": Scene((14, -25, 1, 12, 12, -10, 0, -22), (2.2, 4.5, 0.6, 0.8, 0.4), 1, 0.4),
    "restaurant": Scene((-27, -2, -27, -9, 9, 16, -21, -25), (0.9, 5.0, 3.0, 0.3, 0.4), 1, 0.5),
    "bar": Scene((-27, 8, -23, -9, 16, 4, -10, 19), (0.9, 10.0, 1.0, 0.4, 2.1), 1, 0.25),
    "street_traffic": Scene((15, -20, 21, 5, -15, -14, 6, 10), (1.6, 1.0, 0.5, 0.5, 0.6), 1, 0.35),
    "construction_site": Scene((5, 3, 11, -9, -12, 20, -3, 6), (0.9, 1.2, 4.0, 0.5, 1.2), 12, 0.2),
}
POOL_ONLY = {
    "metro_station": Scene((-9, 5, -9, 8, 4, 0, 9, 14), (2.2, 3.0, 0.8, 0.7, 1.0), 4, 1.4),
    "tram": Scene((-9, 10, 3, -9, 2, 4, 6, 16), (0.7, 2.5, 1.2, 0.5, 1.1), 8, 0.2),
    "street_pedestrian": Scene((5, -22, -6, 12, 7, -1, -1, -18), (3.0, 5.0, 0.7, 0.4, 0.4), 1, 0.35),
}
POOL_SCENES = {**POOL_ONLY, **{name: SCENES[name] for name in ("airport", "bus", "metro", "park", "street_traffic")}}

CITIES = ("arlen", "belmor", "corvay")
UNSEEN_CITY = "dunmere"
POOL_CITIES = ("eastow", "farrin", "galdon", "hallim", "iverby")


@dataclass(frozen=True)
class Format:
    """File format of a device: mono, `rate` in Hz, `suffix` and `subtype` as named by libsndfile."""

    rate: int
    suffix: str
    subtype: str = "PCM_16"


DEVICES = {"a": Format(16_000, "wav"), "b": Format(22_050, "flac"), "c": Format(16_000, "flac")}
UNSEEN_DEVICE = "d"
POOL_DEVICES = {"p": Format(16_000, "wav"), "q": Format(16_000, "flac"), "r": Format(22_050, "wav")}
FORMATS = {**DEVICES, UNSEEN_DEVICE: Format(16_000, "wav"), **POOL_DEVICES}
RARE_FORMATS = (Format(44_100, "wav", "PCM_24"), Format(32_000, "aiff"), Format(48_000, "flac"), Format(24_000, "au"))
"""Formats of a few sessions, to exercise the decoder."""


def generator(seed: int, name: str) -> np.random.Generator:
    """A random generator for one named purpose."""
    return np.random.default_rng([seed, *name.encode()])


@dataclass(frozen=True)
class City:
    """A city's timbres of the sources, and their levels and rates in each of its scenes."""

    timbres: Curve
    """(sources, 3), in units of Timbre."""
    levels: dict[str, Curve]
    """Decibels (sources,) added in each scene."""
    rates: dict[str, Curve]
    """Octaves (grained sources,) added to the rates of each scene."""
    bed: Curve
    """Knots of the noise bed, dB."""

    @classmethod
    def draw(cls, seed: int, name: str) -> City:
        """Draw the city `name` of `seed`."""
        rng = generator(seed, f"city {name}")
        far = UNSEEN_CITY_FAR if name == UNSEEN_CITY else 1.0
        every = {**SCENES, **POOL_ONLY}
        return cls(
            timbres=rng.normal(0, far * CITY_TIMBRE, (len(SOURCES), 3)) * TIMBRE_SPREAD,
            levels={scene: rng.normal(0, far * CITY_LEVEL, len(SOURCES)) for scene in every},
            rates={scene: rng.normal(0, 0.3, len(GRAINED)) for scene in every},
            bed=rng.normal(0, far * CITY_BED, len(KNOT_HERTZ)),
        )

    def timbre(self, rng: np.random.Generator, source: str) -> Timbre:
        """Draw a session's timbre of `source` in this city."""
        draw = self.timbres[SOURCES.index(source)] + rng.normal(0, SESSION_TIMBRE, 3) * TIMBRE_SPREAD
        return Timbre(*draw)


@dataclass(frozen=True)
class Device:
    """A recording device: frequency response, noise floor and automatic gain."""

    response: Curve
    """Knots of its frequency response, dB."""
    floor: Curve
    """Knots of the spectrum of its own noise, dB."""
    floor_level: float
    """Its own noise against the recording, dB."""
    gain_control: float
    """Share of the level's changes (in dB) that the automatic gain removes."""
    gain_seconds: float
    """Time constant of the automatic gain, seconds."""

    @classmethod
    def draw(cls, seed: int, name: str) -> Device:
        """Draw the device `name` of `seed`."""
        rng = generator(seed, f"device {name}")
        far = UNSEEN_DEVICE_FAR if name == UNSEEN_DEVICE else 1.0
        return cls(
            response=rng.normal(0, far * DEVICE_RESPONSE, len(KNOT_HERTZ)),
            floor=rng.normal(0, 2.0, len(KNOT_HERTZ)),
            floor_level=rng.uniform(-36, -28),
            gain_control=rng.uniform(0.1, 0.6),
            gain_seconds=rng.uniform(0.2, 0.8),
        )
