"""Augmentations: the identity when off, seeded, without effect on padding, and each one's effect."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import firwin2, lfilter
from torch import Tensor

from raymae.audio.logmel import LogMel
from raymae.config import AudioConfig, AugmentConfig
from raymae.features.augment import (
    COLORATION,
    GEOMETRY,
    apply_coloration,
    apply_geometry,
    crop,
    device_response,
    freq_mixstyle,
    gain,
    mixup,
    random_eq,
    roll,
    spec_augment,
)

AUDIO = AudioConfig(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=32, clip_seconds=0.64)
OFF = AugmentConfig()
ALL = AugmentConfig(
    crop_seconds=0.32,
    roll_p=1.0,
    gain_db=6.0,
    eq_p=1.0,
    mixup_p=1.0,
    mixstyle_p=1.0,
    freq_mask_param=8,
    time_mask_param=8,
)
VALID = torch.tensor([64, 40, 10, 1, 64, 33])
SOUNDING = torch.ones(6, dtype=torch.bool)
RESPONSES = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
DEVICES = AugmentConfig(responses=("devices/",), response_p=1.0)
SWITCHES = {
    "crop": {"crop_seconds": 0.32},
    "roll": {"roll_p": 0.7},
    "gain": {"gain_db": 6.0},
    "random_eq": {"eq_p": 0.7},
    "freq_mixstyle": {"mixstyle_p": 0.7},
    "spec_augment": {"freq_mask_param": 8, "time_mask_param": 8},
}
"""The settings that switch each augmentation on."""
AUGMENTATIONS = {one.__name__: one for one in (*GEOMETRY, *COLORATION) if one is not device_response}


def augment(
    log_mel: Tensor,
    valid_frames: Tensor,
    config: AugmentConfig,
    audio: AudioConfig,
    generator: torch.Generator,
    responses: NDArray[np.float32] | None = None,
) -> tuple[Tensor, Tensor]:
    """All augmentations of a clip, in their order."""
    log_mel, valid_frames = apply_geometry(log_mel, valid_frames, config, audio, generator)
    return apply_coloration(log_mel, valid_frames, config, audio, generator, responses), valid_frames


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def is_padding(valid_frames: Tensor, n_frames: int = 64) -> Tensor:
    return torch.arange(n_frames) >= valid_frames[:, None]


@pytest.fixture
def batch() -> Tensor:
    """Six clips (6, 64, 32), padded with silence after VALID frames."""
    log_mel = torch.randn(6, 64, 32, generator=seeded(9))
    log_mel[is_padding(VALID)] = AUDIO.silence
    return log_mel


def numbered_frames(valid_frames: Tensor) -> Tensor:
    """Clips (B, 64, 2) that hold the numbers of their frames, and -1 as padding."""
    log_mel = torch.arange(64.0)[None, :, None].repeat(len(valid_frames), 1, 2)
    log_mel[is_padding(valid_frames)] = -1
    return log_mel


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_off_is_the_identity(name: str, batch: Tensor) -> None:
    found, valid_frames = AUGMENTATIONS[name](batch, VALID, OFF, AUDIO, seeded())
    assert torch.equal(found, batch)
    assert torch.equal(valid_frames, VALID)


@given(
    on=st.sets(st.sampled_from(sorted(SWITCHES))),
    devices=st.booleans(),
    nats=st.floats(0, 9),
    alpha=st.floats(0.01, 9),
    seed=st.integers(0, 2**32),
)
def test_an_augmentation_that_is_off_draws_nothing(
    on: set[str], devices: bool, nats: float, alpha: float, seed: int
) -> None:
    """Any of them together give the same as one after the other; all off are the identity."""
    fields = {name: value for key in on for name, value in SWITCHES[key].items()}
    share = 0.7 if devices else 0.0
    config = AugmentConfig(
        **fields, responses=("x",), response_p=share, eq_nats=nats, mixstyle_alpha=alpha, mixup_alpha=alpha
    )
    batch = torch.randn(6, 64, 32, generator=seeded(9))
    together, apart = seeded(seed), seeded(seed)
    found, found_valid = augment(batch, VALID, config, AUDIO, together, RESPONSES)
    wanted, wanted_valid = batch, VALID
    for name, augmentation in AUGMENTATIONS.items():
        if name == "random_eq" and devices:
            wanted, wanted_valid = device_response(wanted, wanted_valid, config, AUDIO, apart, RESPONSES)
        if name in on:
            wanted, wanted_valid = augmentation(wanted, wanted_valid, config, AUDIO, apart)
    assert torch.equal(found, wanted)
    assert torch.equal(found_valid, wanted_valid)
    assert torch.equal(together.get_state(), apart.get_state())


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(crop_seconds=0.64),
        AugmentConfig(eq_p=1.0, eq_nats=0.0),
        AugmentConfig(responses=("x",), response_p=0.0),
    ],
)
def test_strength_zero_is_the_identity(config: AugmentConfig, batch: Tensor) -> None:
    found, valid_frames = augment(batch, VALID, config, AUDIO, seeded())
    assert torch.equal(found, batch)
    assert torch.equal(valid_frames, VALID)


def test_one_of_two_stripes_can_be_off(batch: Tensor) -> None:
    bands, _ = spec_augment(batch, VALID, AugmentConfig(freq_mask_param=8), AUDIO, seeded())
    frames, _ = spec_augment(batch, VALID, AugmentConfig(time_mask_param=8), AUDIO, seeded())
    clip = (bands != batch)[0]
    assert torch.equal(clip, clip[:1].expand_as(clip))
    clip = (frames != batch)[0]
    assert torch.equal(clip, clip[:, :1].expand_as(clip))


def test_mixup_off_is_the_identity(batch: Tensor) -> None:
    target = torch.eye(6)
    found = mixup(batch, target, VALID, OFF, seeded(), SOUNDING)
    assert all(torch.equal(one, other) for one, other in zip(found, (batch, target, VALID), strict=True))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_values_change_but_input_and_padding_do_not(name: str, batch: Tensor) -> None:
    before = batch.clone()
    found, valid_frames = AUGMENTATIONS[name](batch, VALID, ALL, AUDIO, seeded())
    assert torch.equal(batch, before)
    assert not torch.equal(found, batch[:, : found.shape[1]])
    assert torch.isfinite(found).all()
    assert (found[is_padding(valid_frames, found.shape[1])] == AUDIO.silence).all()


def test_a_seed_decides(batch: Tensor) -> None:
    one, again, other = (augment(batch, VALID, ALL, AUDIO, seeded(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_clips_draw_for_themselves(batch: Tensor) -> None:
    same = batch[:1].repeat(6, 1, 1)
    config = replace(ALL, mixstyle_p=0.0)
    found, _ = augment(same, VALID[:1].repeat(6), config, AUDIO, seeded())
    assert all(not torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", ["roll", "random_eq", "freq_mixstyle"])
def test_half_the_clips_change_at_half_the_probability(name: str) -> None:
    batch = torch.randn(400, 64, 4, generator=seeded())
    half = AugmentConfig(roll_p=0.5, eq_p=0.5, mixstyle_p=0.5)
    found, _ = AUGMENTATIONS[name](batch, torch.full((400,), 64), half, AUDIO, seeded())
    unchanged = sum(torch.equal(one, other) for one, other in zip(found, batch, strict=True))
    assert 150 < unchanged < 250


def test_crop_takes_any_run_of_valid_frames() -> None:
    valid_frames = torch.tensor([64, 40, 32, 10]).repeat_interleave(200)
    found, found_valid = crop(numbered_frames(valid_frames), valid_frames, ALL, AUDIO, seeded())
    assert found.shape == (800, 32, 2)
    assert torch.equal(found_valid, valid_frames.clamp(max=32))
    starts = found[:, 0, 0].reshape(4, 200)
    assert set(starts[0].tolist()) == set(range(33))
    assert set(starts[1].tolist()) == set(range(9))
    assert not starts[2:].any()
    inside = ~is_padding(found_valid, 32)
    assert torch.equal(found[..., 0][inside], (found[:, :1, 0] + torch.arange(32))[inside])


def test_roll_rotates_the_valid_frames_and_never_by_nothing() -> None:
    valid_frames = torch.tensor([5, 2, 1]).repeat_interleave(300)
    found, _ = roll(numbered_frames(valid_frames), valid_frames, ALL, AUDIO, seeded())
    firsts = found[:, 0, 0].reshape(3, 300)
    assert [set(row.tolist()) for row in firsts] == [{1, 2, 3, 4}, {1}, {0}]
    rotated = (found[:300, :1, 0] + torch.arange(5)) % 5
    assert torch.equal(found[:300, :5, 0], rotated)


def test_gain_in_decibels(batch: Tensor) -> None:
    found, _ = gain(batch.repeat(50, 1, 1), VALID.repeat(50), ALL, AUDIO, seeded())
    shift = (found - batch.repeat(50, 1, 1))[:, 0]
    decibels = shift.mean(1) * AUDIO.norm_scale * 10 / np.log(10)
    assert shift.std(1).max() < 1e-6
    assert decibels.abs().max() <= 6
    assert decibels.std() == pytest.approx(12 / np.sqrt(12), rel=0.1)


def test_random_eq_has_its_spread_and_is_linear_between_knots() -> None:
    batch = torch.zeros(2000, 64, 22)
    config = AugmentConfig(eq_p=1.0, eq_knots=8, eq_nats=3.0)
    found, _ = random_eq(batch, torch.full((2000,), 64), config, AUDIO, seeded())
    assert torch.equal(found, found[:, :1].expand_as(found))
    response = found[:, 0] * AUDIO.norm_scale
    torch.testing.assert_close(response[:, ::3].std(0), torch.full((8,), 3.0), rtol=0.08, atol=0)  # 22 = 7 * 3 + 1
    assert response.diff(n=2)[:, [0, 1, 3, 4]].abs().max() < 1e-4
    assert response.diff(n=2)[:, 2].abs().mean() > 0.5


def test_random_eq_approximates_a_short_filter() -> None:
    """The log-mel of filtered noise is almost the noise's log-mel plus the filter's response at each band."""
    rng = np.random.default_rng(0)
    audio = replace(AUDIO, n_fft=1024, win_length=800, clip_seconds=4.0)
    knots = rng.normal(size=6) * 1.5  # nats of power
    fir = firwin2(65, np.linspace(0, 1, 6), np.exp(knots / 2))
    noise = rng.normal(size=audio.n_samples)
    front_end = LogMel(audio)
    before, after = front_end(noise), front_end(lfilter(fir, 1, noise))
    change = (after - before)[4:-4] * audio.norm_scale
    centres = 700 * np.expm1(np.linspace(0, np.log1p(4000 / 700), audio.n_mels + 2))[1:-1]
    power = np.abs(np.exp(-2j * np.pi * np.outer(centres / 8000, np.arange(65))) @ fir) ** 2
    np.testing.assert_allclose(change.mean(0), np.log(power), atol=0.15)
    assert change.std(0).max() < 0.35


def test_every_clip_gets_the_response_of_one_device() -> None:
    valid_frames = VALID.repeat(100)
    batch = torch.randn(600, 64, 32, generator=seeded(9))
    batch[is_padding(valid_frames)] = AUDIO.silence
    found, found_valid = augment(batch, valid_frames, DEVICES, AUDIO, seeded(), RESPONSES)
    assert torch.equal(found_valid, valid_frames)
    assert torch.equal(found[is_padding(valid_frames)], batch[is_padding(valid_frames)])
    change = (found - batch)[:, 0]
    missed = (change[:, None] - torch.from_numpy(RESPONSES)).abs().amax(2)
    assert missed.amin(1).max() < 1e-6
    assert missed.argmin(1).bincount().min() > 150
    constant = (found - batch - change[:, None])[~is_padding(valid_frames)]
    assert constant.abs().max() < 1e-5


def test_devices_by_their_probability_and_half_by_default() -> None:
    batch = torch.zeros(1000, 64, 32)
    for p, share in ((None, 0.5), (0.2, 0.2)):
        config = replace(DEVICES, response_p=p)
        found, _ = augment(batch, torch.full((1000,), 64), config, AUDIO, seeded(), RESPONSES)
        assert found[:, 0].any(1).float().mean() == pytest.approx(share, abs=0.05)


def test_devices_without_their_offsets_are_an_error(batch: Tensor) -> None:
    with pytest.raises(ValueError, match=r"augment\.responses = \('devices/',\) are missing"):
        augment(batch, VALID, DEVICES, AUDIO, seeded())


def test_mixstyle_mixes_band_statistics_of_two_clips() -> None:
    """Two clips that differ by an affine map of each band stay on the line between them."""
    base = torch.randn(64, 8, generator=seeded(3))
    clips = torch.stack([base, 3 * base + 5])
    config = AugmentConfig(mixstyle_p=1.0, mixstyle_alpha=1.0)
    valid_frames = torch.full((2,), 64)
    moved = 0
    for seed in range(20):
        found, _ = freq_mixstyle(clips, valid_frames, config, AUDIO, seeded(seed))
        share = ((found.mean(1) - clips[0].mean(0)) / (clips[1] - clips[0]).mean(0)).mean(1, keepdim=True)
        torch.testing.assert_close(found, torch.lerp(clips[0], clips[1], share[:, None]), atol=1e-3, rtol=1e-3)
        moved += int(0.01 < share[0] < 0.99)
    assert moved >= 4


def test_mixstyle_uses_valid_frames_only(batch: Tensor) -> None:
    other_padding = torch.where(is_padding(VALID)[:, :, None], 99.0, batch)
    one, two = (freq_mixstyle(clips, VALID, ALL, AUDIO, seeded())[0] for clips in (batch, other_padding))
    inside = ~is_padding(VALID)
    assert torch.equal(one[inside], two[inside])


def test_spec_augment_masks_one_stripe_each_way_to_the_mean(batch: Tensor) -> None:
    most_bands = most_frames = 0
    for seed in range(100):
        found, _ = spec_augment(batch, VALID, ALL, AUDIO, seeded(seed))
        for clip, before, valid in zip(found, batch, VALID.tolist(), strict=True):
            masked = clip[:valid] != before[:valid]
            mean = before[:valid].mean()
            torch.testing.assert_close(clip[:valid][masked], mean.expand(int(masked.sum())))
            bands, frames = masked.all(0), masked.all(1)
            if valid == 64:  # where a clip is short, a stripe can hide all of it
                assert torch.equal(masked, bands[None] | frames[:, None])
                most_bands, most_frames = max(most_bands, int(bands.sum())), max(most_frames, int(frames.sum()))
                for stripe in (bands, frames):
                    assert stripe.int().diff().abs().sum() <= 2
    assert most_bands == most_frames == 8


def test_mixup_mixes_inputs_and_targets_alike() -> None:
    """Clip k is k everywhere, so that the value of a mixture shows its components."""
    values = torch.arange(6.0)
    batch = values[:, None, None].repeat(1, 64, 32)
    for seed in range(10):
        log_mel, target, valid_frames = mixup(batch, torch.eye(6), VALID, ALL, seeded(seed), SOUNDING)
        torch.testing.assert_close(target.sum(1), torch.ones(6))
        torch.testing.assert_close(log_mel, (target @ values)[:, None, None].expand_as(log_mel))
        assert ((target > 0).sum(1) <= 2).all()
        for clip in range(6):
            parts = target[clip].nonzero()[:, 0]
            assert clip in parts
            assert valid_frames[clip] == VALID[parts].max()


def test_autocast_changes_no_augmentation() -> None:
    """Training augments under autocast, whose matrix products would be too imprecise for band statistics."""
    log_mel = -1 + 0.1 * torch.randn(6, 64, 32, generator=torch.Generator().manual_seed(0))
    for name, augmentation in AUGMENTATIONS.items():
        plain, _ = augmentation(log_mel, VALID, ALL, AUDIO, torch.Generator().manual_seed(1))
        with torch.autocast("cpu", torch.bfloat16):
            found, _ = augmentation(log_mel, VALID, ALL, AUDIO, torch.Generator().manual_seed(1))
        assert torch.equal(found, plain), name
