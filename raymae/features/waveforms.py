"""Augmentations of waveforms: speed, mixing, responses of devices, noise, gain, and the part of a clip that is used.

As those of log-mels (`raymae.features.augment`): what is drawn is decided on the CPU by the clip's place in the run,
the rest is arithmetic on a batch (B, n) on any device that reads nothing back. After a clip's valid samples there are
zeros, before and after. They are applied in the order of a recording: sounds, their mixture, a device, its noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil, log, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchaudio.functional import fftconvolve
from torchaudio.transforms import Resample

from raymae.config import AudioConfig, AugmentConfig
from raymae.features.augment import Drawn
from raymae.features.draws import Draws

GAMMA, FIRST, SECOND = (
    value - (1 << 64) if value >= 1 << 63 else value
    for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
"""The constants of `raymae.features.draws.hashed`, as torch's signed integers."""
LANE_STD = sqrt(4 * (2**32 - 1) / 12)
"""Standard deviation of the sum of four numbers that are uniform from 0 to 2^16 - 1."""


# Speed ---------------------------------------------------------------------------------------------------------------


def draw_speed(config: AugmentConfig, draws: Draws) -> NDArray[np.int64] | None:
    """(B,): the number of each clip's rate among `speed_rates`, -1 for clips that keep theirs; None for none."""
    if not config.speed_p:
        return None
    chosen = draws.integers("speed", np.full(len(draws.places), len(config.speed_rates)))
    return np.where(draws.coins("speed_p", config.speed_p), chosen, -1)


def played_samples(
    valid: NDArray[np.integer], rate: NDArray[np.int64] | None, config: AugmentConfig, audio: AudioConfig
) -> NDArray[np.int64]:
    """Samples (B,) of clips of `valid` samples (B,) at the rates that are drawn; at most a whole clip's."""
    found = np.asarray(valid, np.int64)
    if rate is None:
        return found
    for number, value in enumerate(config.speed_rates):
        exact = _fraction(value)
        played = -(-found * exact.denominator // exact.numerator)
        found = np.where(rate == number, np.minimum(played, audio.n_samples), found)
    return found


def _fraction(rate: float) -> Fraction:
    return Fraction(round(100 * rate), 100)


class Speed(nn.Module):
    """Plays clips at some rates: resampled by windowed sinc functions, cut or filled up to the same length."""

    def __init__(self, rates: Sequence[float]) -> None:
        super().__init__()
        exact = [_fraction(rate) for rate in rates]
        self.resample = nn.ModuleList(Resample(one.numerator, one.denominator) for one in exact)

    def forward(self, waveforms: Tensor, rate: Tensor) -> Tensor:
        """Waveforms (B, n) at the rates of these numbers (B,)."""
        found, n = waveforms, waveforms.shape[1]
        for number, resample in enumerate(self.resample):
            played = resample(waveforms)[:, :n]
            played = nn.functional.pad(played, (0, n - played.shape[1]))
            found = torch.where(rate[:, None] == number, played, found)
        return found


# Parts ---------------------------------------------------------------------------------------------------------------


def part_samples(n_frames: int, audio: AudioConfig) -> int:
    """Samples that hold `n_frames` frames and what their windows reach on either side, whole hops before them."""
    if n_frames >= audio.n_frames:
        return audio.n_samples
    window = audio.win_length if audio.framing == "kaldi" else audio.n_fft // 2 + 2
    return min(audio.n_samples, (lead_frames(audio) + n_frames - 1) * audio.hop_length + window)


def lead_frames(audio: AudioConfig) -> int:
    """Frames before the first one of a part that its window reaches back to."""
    return 0 if audio.framing == "kaldi" else ceil(audio.n_fft / 2 / audio.hop_length)


def take(waveforms: Tensor, starts: Tensor, count: int) -> Tensor:
    """`count` samples (B, count) of waveforms (B, n) from samples `starts` (B,) on, zeros after their end."""
    waveforms = nn.functional.pad(waveforms, (0, count))
    places = starts[:, None] + torch.arange(count, device=starts.device)
    return waveforms.gather(1, places.clamp(max=waveforms.shape[1] - 1))


# Mixing --------------------------------------------------------------------------------------------------------------


def draw_wave_mix(config: AugmentConfig, draws: Draws, sounding: NDArray[np.bool_]) -> Drawn:
    """Weights (B,) and partners (B,) of clips that are mixed within their group, of a group with `wave_mix_p`.

    The weight is drawn from Beta(mixup_alpha, mixup_alpha); it is 1 for clips whose partner is not `sounding` (B,).
    """
    if not config.wave_mix_p:
        return {}
    partner = draws.partners("wave_mix_partner")
    mixed = draws.group_coins("wave_mix_p", config.wave_mix_p) & sounding[partner]
    weight = np.where(mixed, draws.beta("wave_mix", config.mixup_alpha), 1.0).astype(np.float32)
    return {"wave_weight": weight, "wave_partner": partner}


def mix_waves(waveforms: Tensor, weight: Tensor, partner: Tensor) -> Tensor:
    """Mix the first clips of a batch (B, n) with their partners, by weights (b,)."""
    own, others = waveforms[: len(weight)], waveforms[len(weight) :]
    return torch.cat([own[partner].lerp(own, weight[:, None]), others])


# Devices -------------------------------------------------------------------------------------------------------------


def draw_responses(config: AugmentConfig, count: int, draws: Draws) -> NDArray[np.int64]:
    """(B,): the number of each clip's response among `count`, -1 for clips without one; as `device_response` draws."""
    chosen = draws.integers("response", np.full(len(draws.places), count))
    return np.where(draws.coins("response_p", config.response_share), chosen, -1)


def convolve(waveforms: Tensor, valid: Tensor, responses: Tensor, chosen: Tensor) -> Tensor:
    """Waveforms (B, n) convolved with the responses (R, taps) of the numbers `chosen` (B,), -1 for none.

    A response's largest sample is its time 0, so that the sound stays where it is; what rings on after a clip's valid
    samples (B,) is cut off.
    """
    response = responses[chosen.clamp(min=0)]
    whole = fftconvolve(waveforms, response)
    heard = take(whole, response.abs().argmax(1), waveforms.shape[1])
    return cut(torch.where(chosen[:, None] >= 0, heard, waveforms), valid)


def cut(waveforms: Tensor, valid: Tensor) -> Tensor:
    """Zeros after the valid samples (B,)."""
    places = torch.arange(waveforms.shape[1], device=waveforms.device)
    return waveforms.masked_fill(places >= valid[:, None], 0.0)


# Noise and gain ------------------------------------------------------------------------------------------------------


def draw_noise(config: AugmentConfig, draws: Draws) -> Drawn:
    """Of each clip the seed (B,) of its noise and its level (B,) relative to the clip's, 0 for none."""
    if not config.noise_p:
        return {}
    lowest, highest = config.snr_db
    decibels = lowest + (highest - lowest) * draws.one("snr")
    level = np.where(draws.coins("noise_p", config.noise_p), 10 ** (-decibels / 20), 0)
    return {"noise_seed": draws.bits("noise", 1)[:, 0].view(np.int64), "noise_level": level.astype(np.float32)}


def add_noise(waveforms: Tensor, valid: Tensor, seed: Tensor, level: Tensor) -> Tensor:
    """Add white noise to waveforms (B, n), at `level` (B,) times the root mean square of their valid samples (B,)."""
    power = waveforms.square().sum(1) / valid.clamp(min=1)
    noise = white_noise(seed, waveforms.shape[1])
    return cut(torch.addcmul(waveforms, noise, (power.sqrt() * level)[:, None]), valid)


def white_noise(seed: Tensor, count: int) -> Tensor:
    """Noise (B, count) by seeds (B,), the same on every device: nearly normal, with mean 0 and standard deviation 1.

    Each sample is the sum of the four 16-bit parts of a hash (`raymae.features.draws.hashed`) of seed and place.
    """
    state = seed[:, None] + torch.arange(count, device=seed.device) * GAMMA
    state = (state ^ _shifted(state, 30)) * FIRST
    state = (state ^ _shifted(state, 27)) * SECOND
    state = state ^ _shifted(state, 31)
    total = sum((_shifted(state, bits) & 0xFFFF for bits in (16, 32, 48)), state & 0xFFFF)
    return (total - 2 * 0xFFFF).float() / LANE_STD


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Shift to the right, zeros from the left: torch repeats the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def draw_wave_gain(config: AugmentConfig, draws: Draws) -> Drawn:
    """Each clip's factor (B, 1), by a gain that is uniform from -`gain_db` to `gain_db`; as `draw_gain` draws it."""
    if not config.gain_db:
        return {}
    decibels = config.gain_db * (2 * draws.one("gain") - 1)
    return {"wave_gain": np.exp(decibels * log(10) / 20).astype(np.float32)[:, None]}


def apply_level(waveforms: Tensor, valid: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    """Add noise and change the level as drawn."""
    if "noise_level" in drawn:
        waveforms = add_noise(waveforms, valid, drawn["noise_seed"], drawn["noise_level"])
    return waveforms * drawn["wave_gain"] if "wave_gain" in drawn else waveforms
