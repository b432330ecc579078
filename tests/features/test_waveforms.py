"""Augmentations of waveforms against plain definitions in NumPy and SciPy, and their draws by place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.signal
import torch
from numpy.typing import NDArray

from raymae.audio.logmel import LogMel
from raymae.config import FRONT_ENDS, AugmentConfig
from raymae.features import waveforms as w
from raymae.features.device_log_mel import DeviceLogMel
from raymae.features.draws import Draws, hashed
from tests.support.audio_files import TINY_AUDIO

N, COUNT = TINY_AUDIO.n_samples, 6
VALID = np.array([N, 3000, 700, 1, N, 4001])
DRAWS = Draws(3, np.arange(COUNT) + 40, 3)


def batch(seed: int = 0) -> NDArray[np.float32]:
    """Noise, and zeros after the valid samples."""
    values = np.random.default_rng(seed).normal(size=(COUNT, N)).astype(np.float32)
    return np.where(np.arange(N) < VALID[:, None], values, 0).astype(np.float32)


def tensor(values: NDArray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values))


def test_a_waveform_is_convolved_with_its_response() -> None:
    x, rng = batch(), np.random.default_rng(1)
    responses = (rng.normal(size=(3, 400)) * np.exp(-np.arange(400) / 60)).astype(np.float32)
    chosen = np.array([0, 2, 1, 0, -1, 2])
    found = w.convolve(tensor(x), tensor(VALID), tensor(responses), tensor(chosen)).numpy()
    for one, heard, valid, number in zip(x, found, VALID, chosen, strict=True):
        expected = one[:valid]
        if number >= 0:
            first = np.abs(responses[number]).argmax()
            expected = np.convolve(one.astype(np.float64), responses[number])[first : first + valid]
        np.testing.assert_allclose(heard[:valid], expected, atol=1e-4)
        assert not heard[valid:].any()


@pytest.mark.parametrize("snr", [-5.0, 20.0])
def test_noise_has_its_ratio_and_its_seed(snr: float) -> None:
    drawn = w.draw_noise(AugmentConfig(noise_p=1.0, snr_db=(snr, snr)), DRAWS)
    x = batch()
    found = w.add_noise(tensor(x), tensor(VALID), *(tensor(one) for one in drawn.values())).numpy()
    for one, heard, valid, seed in zip(x, found, VALID, drawn["noise_seed"], strict=True):
        states = seed.view(np.uint64) + np.arange(N, dtype=np.uint64) * np.uint64(w.GAMMA % 2**64)
        lanes = hashed(states, 0).view(np.uint16).reshape(N, 4).astype(np.float64)
        noise = (lanes.sum(1) - 2 * 65535) / np.sqrt(4 * (65536**2 - 1) / 12)
        scale = np.sqrt((one[:valid].astype(np.float64) ** 2).mean()) * 10 ** (-snr / 20)
        np.testing.assert_allclose(heard[:valid], one[:valid] + scale * noise[:valid], rtol=1e-5, atol=1e-4)
        assert not heard[valid:].any()


def test_noise_is_white_and_nearly_normal() -> None:
    noise = w.white_noise(tensor(DRAWS.bits("noise", 1)[:, 0].view(np.int64)), 50_000).numpy().astype(np.float64)
    assert np.abs(noise.mean(1)).max() < 0.02
    assert np.abs(noise.std(1) - 1).max() < 0.02
    assert np.abs((noise**4).mean(1) - 3 + 1.2 / 4).max() < 0.1  # of four uniform numbers
    correlation = np.corrcoef(np.concatenate([noise, np.roll(noise, 1, axis=1)]))
    assert np.abs(correlation - np.eye(2 * COUNT)).max() < 0.03


@pytest.mark.parametrize("rate", [0.9, 1.1, 1.25])
def test_speed_moves_tones_and_ends(rate: float) -> None:
    """A tone of some frequency becomes, but for its ends, the tone of `rate` times that frequency."""
    config = AugmentConfig(speed_p=1.0, speed_rates=(rate,))
    drawn = w.draw_speed(config, DRAWS)
    assert drawn is not None
    played = w.played_samples(VALID, drawn, config, TINY_AUDIO)
    assert played.tolist() == [min(N, int(np.ceil(round(v / rate, 6)))) for v in VALID]
    time = np.arange(N) / TINY_AUDIO.sample_rate
    x = np.where(np.arange(N) < VALID[:, None], np.sin(2 * np.pi * 500 * time), 0).astype(np.float32)
    found = w.Speed(config.speed_rates)(tensor(x), tensor(drawn)).numpy()
    expected = np.sin(2 * np.pi * 500 * rate * time)
    for heard, count in zip(found, played, strict=True):
        np.testing.assert_allclose(heard[30 : max(30, count - 30)], expected[30 : max(30, count - 30)], atol=0.02)
        assert np.abs(heard[count + 30 :]).max(initial=0) < 1e-3
    kept = w.Speed(config.speed_rates)(tensor(x), tensor(np.full(COUNT, -1)))
    assert np.array_equal(kept.numpy(), x)


@pytest.mark.parametrize(("up", "down", "rate"), [(10, 9, 0.9), (10, 11, 1.1)])
def test_speed_is_band_limited_resampling(up: int, down: int, rate: float) -> None:
    x = scipy.signal.firwin(101, 0.3)  # nothing near the Nyquist frequency, where the two filters differ
    x = np.convolve(np.random.default_rng(0).normal(size=2000), x, "same").astype(np.float32)
    found = w.Speed((rate,))(tensor(x[None]), torch.zeros(1, dtype=torch.int64)).numpy()[0]
    expected = scipy.signal.resample_poly(x, up, down)[: len(x)]
    inside = slice(100, min(len(expected), len(x)) - 100)
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.01 * np.abs(x).max())


def test_waveforms_are_mixed_within_their_group() -> None:
    config, sounding = AugmentConfig(wave_mix_p=1.0), np.array([True, True, False, True, True, True])
    drawn = w.draw_wave_mix(config, DRAWS, sounding)
    x = batch()
    found = w.mix_waves(tensor(x), *(tensor(one) for one in drawn.values())).numpy()
    weight, partner = drawn["wave_weight"].astype(np.float64), drawn["wave_partner"]
    expected = weight[:, None] * x + (1 - weight)[:, None] * x[partner]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (partner // 3 == np.arange(COUNT) // 3).all()
    assert (weight[~sounding[partner]] == 1).all()
    assert (weight < 1).any()


def test_a_gain_is_the_offset_that_log_mels_get() -> None:
    config = AugmentConfig(gain_db=12.0)
    factor = w.draw_wave_gain(config, DRAWS)["wave_gain"]
    expected = 10 ** (12 * (2 * DRAWS.one("gain") - 1) / 20)
    np.testing.assert_allclose(
        w.apply_level(tensor(batch()), tensor(VALID), {"wave_gain": tensor(factor)}).numpy(),
        batch() * expected[:, None],
        rtol=1e-5,
    )


def test_draws_are_by_place_alone() -> None:
    """A clip's draws are the same in a pass of its own, mixing aside, and differ from clip to clip."""
    config = AugmentConfig(noise_p=0.5, speed_p=0.5, gain_db=6.0, responses=("devices/",))
    some = replace(DRAWS, places=DRAWS.places[3:])
    for draw in (w.draw_noise, w.draw_wave_gain):
        whole, part = draw(config, DRAWS), draw(config, some)
        assert all(np.array_equal(whole[name][3:], part[name]) for name in whole)
        assert all(len(np.unique(values)) > 1 for values in whole.values())
    for one in (lambda draws: w.draw_speed(config, draws), lambda draws: w.draw_responses(config, 4, draws)):
        assert np.array_equal(one(DRAWS)[3:], one(some))


@pytest.mark.parametrize("name", ["tiny", *FRONT_ENDS])
@pytest.mark.parametrize("start", [0, 1, 13, 30])
def test_frames_of_a_part_are_those_of_the_clip(name: str, start: int) -> None:
    audio = TINY_AUDIO if name == "tiny" else replace(FRONT_ENDS[name], clip_seconds=1.2)
    length, valid = 20, audio.n_samples - 77
    x = np.random.default_rng(0).normal(size=(1, audio.n_samples)).astype(np.float32)
    first = max(0, start - w.lead_frames(audio))
    count = w.part_samples(length, audio)
    part = w.take(tensor(x), torch.tensor([first * audio.hop_length]), count)
    left = torch.tensor([max(0, min(count, valid - first * audio.hop_length))])
    found, frames = DeviceLogMel(audio)(part, left)
    whole = LogMel(audio)(x[0, :valid])[start : start + length]
    held = found[0, start - first : start - first + len(whole)].numpy()
    assert int(frames) >= start - first + len(whole)
    np.testing.assert_allclose(held, whole, atol=1e-3)


def test_nothing_is_read_back() -> None:
    meta = {"device": "meta"}
    x, valid = torch.empty(COUNT, N, **meta), torch.empty(COUNT, dtype=torch.int64, **meta)
    level = torch.empty(COUNT, **meta)
    x = w.Speed((0.9, 1.1)).to("meta")(x, valid)
    x = w.mix_waves(w.take(x, valid, 3000), level, valid)
    x = w.convolve(x, valid, torch.empty(5, 300, **meta), valid)
    drawn = {"noise_seed": valid, "noise_level": level, "wave_gain": level[:, None]}
    assert w.apply_level(x, valid, drawn).shape == (COUNT, 3000)
