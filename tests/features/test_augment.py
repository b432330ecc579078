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
    Drawn,
    apply_coloration,
    apply_geometry,
    apply_mixup,
    draw_coloration,
    draw_gain,
    draw_geometry,
    draw_mixup,
    freq_mixstyle,
    hidden_patches,
    random_eq,
    spec_augment,
)
from raymae.features.draws import Draws
from raymae.models.patches import grid_size, patchify

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
VALID = np.array([64, 40, 10, 1, 64, 33])
SOUNDING = np.ones(6, np.bool_)
RESPONSES = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
DEVICES = AugmentConfig(responses=("devices/",), response_p=1.0)
SWITCHES = {
    "crop": ("crop_seconds",),
    "roll": ("roll_p",),
    "gain": ("gain_db",),
    "random_eq": ("eq_p",),
    "freq_mixstyle": ("mixstyle_p",),
    "spec_augment": ("freq_mask_param", "time_mask_param"),
}
"""The settings that switch each augmentation on, in the order of application."""


def only(*names: str, config: AugmentConfig = ALL) -> AugmentConfig:
    """The settings with every augmentation off but these."""
    off = {field: getattr(OFF, field) for name in SWITCHES.keys() - set(names) for field in SWITCHES[name]}
    return replace(config, **off)


def seeded(seed: int = 0, count: int = 6, group: int | None = None) -> Draws:
    """Draws of `count` clips, of one mixing group by default."""
    return Draws(seed, np.arange(count), group or count)


def tensors(drawn: Drawn, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    found = {name: torch.from_numpy(value) for name, value in drawn.items()}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in found.items()}


def augment(
    log_mel: Tensor, valid_frames: NDArray, config: AugmentConfig, draws: Draws, responses: NDArray | None = None
) -> tuple[Tensor, NDArray]:
    """All augmentations of clips but mixup, in their order."""
    audio = replace(AUDIO, clip_seconds=log_mel.shape[1] * AUDIO.hop_length / AUDIO.sample_rate)
    geometry = draw_geometry(valid_frames, config, audio, draws)
    used = torch.empty(len(log_mel), geometry.length, log_mel.shape[2], dtype=log_mel.dtype)
    apply_geometry(log_mel.numpy(), geometry, used.numpy())
    gain = draw_gain(config, audio, draws)
    drawn = draw_coloration(geometry.valid_frames, config, audio, draws, responses, gain)
    frames = torch.from_numpy(geometry.valid_frames)
    return apply_coloration(used, frames, tensors(drawn, log_mel.dtype)), geometry.valid_frames


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def noise(*shape: int, seed: int = 9, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def is_padding(valid_frames: NDArray, n_frames: int = 64) -> Tensor:
    return torch.from_numpy(np.arange(n_frames) >= valid_frames[:, None])


@pytest.fixture
def batch() -> Tensor:
    """Six clips (6, 64, 32), padded with silence after VALID frames."""
    log_mel = noise(6, 64, 32)
    log_mel[is_padding(VALID)] = AUDIO.silence
    return log_mel


def numbered_frames(valid_frames: NDArray) -> Tensor:
    """Clips (B, 64, 32) that hold the numbers of their frames, and -1 as padding."""
    log_mel = torch.arange(64.0)[None, :, None].repeat(len(valid_frames), 1, 32)
    log_mel[is_padding(valid_frames)] = -1
    return log_mel


def test_off_is_the_identity(batch: Tensor) -> None:
    found, valid_frames = augment(batch, VALID, OFF, seeded())
    assert torch.equal(found, batch)
    assert np.array_equal(valid_frames, VALID)
    assert draw_gain(OFF, AUDIO, seeded()) is None
    assert not draw_coloration(VALID, OFF, AUDIO, seeded())


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
    base = replace(ALL, roll_p=0.7, eq_p=0.7, mixstyle_p=0.7, eq_nats=nats, mixstyle_alpha=alpha, mixup_alpha=alpha)
    config = replace(only(*on, config=base), responses=("x",), response_p=0.7 if devices else 0.0)
    batch, draws = noise(6, 64, 32, dtype=torch.float64), seeded(seed)
    found, found_valid = augment(batch, VALID, config, draws, RESPONSES)
    wanted, wanted_valid = batch, VALID
    for name in SWITCHES:
        if name == "random_eq" and devices:
            wanted, wanted_valid = augment(wanted, wanted_valid, replace(DEVICES, response_p=0.7), draws, RESPONSES)
        if name in on:
            wanted, wanted_valid = augment(wanted, wanted_valid, only(name, config=base), draws)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert np.array_equal(found_valid, wanted_valid)


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(crop_seconds=0.64),
        AugmentConfig(eq_p=1.0, eq_nats=0.0),
        AugmentConfig(responses=("x",), response_p=0.0),
    ],
)
def test_strength_zero_is_the_identity(config: AugmentConfig, batch: Tensor) -> None:
    found, valid_frames = augment(batch, VALID, config, seeded())
    assert torch.equal(found, batch)
    assert np.array_equal(valid_frames, VALID)


def test_one_of_two_stripes_can_be_off(batch: Tensor) -> None:
    bands, _ = augment(batch, VALID, AugmentConfig(freq_mask_param=8), seeded())
    frames, _ = augment(batch, VALID, AugmentConfig(time_mask_param=8), seeded())
    clip = (bands != batch)[0]
    assert clip.any()
    assert torch.equal(clip, clip[:1].expand_as(clip))
    clip = (frames != batch)[0]
    assert clip.any()
    assert torch.equal(clip, clip[:, :1].expand_as(clip))


def test_mixup_off_is_the_identity(batch: Tensor) -> None:
    target = np.eye(6, dtype=np.float32)
    found, valid_frames, drawn = draw_mixup(target, VALID, OFF, seeded(), SOUNDING)
    assert np.array_equal(found, target)
    assert np.array_equal(valid_frames, VALID)
    assert torch.equal(apply_mixup(batch, tensors(drawn)), batch)


@pytest.mark.parametrize("name", SWITCHES)
def test_values_change_but_input_and_padding_do_not(name: str, batch: Tensor) -> None:
    before = batch.clone()
    found, valid_frames = augment(batch, VALID, only(name), seeded())
    assert torch.equal(batch, before)
    assert not torch.equal(found, batch[:, : found.shape[1]])
    assert torch.isfinite(found).all()
    assert (found[is_padding(valid_frames, found.shape[1])] == AUDIO.silence).all()


def test_a_seed_decides(batch: Tensor) -> None:
    one, again, other = (augment(batch, VALID, ALL, seeded(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_clips_draw_for_themselves(batch: Tensor) -> None:
    same = batch[:1].repeat(6, 1, 1)
    found, _ = augment(same, VALID[:1].repeat(6), replace(ALL, mixstyle_p=0.0), seeded())
    assert all(not torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", ["roll", "random_eq", "freq_mixstyle"])
def test_half_the_clips_change_at_half_the_probability(name: str) -> None:
    batch = noise(400, 64, 32)
    half = only(name, config=replace(ALL, roll_p=0.5, eq_p=0.5, mixstyle_p=0.5))
    found, _ = augment(batch, np.full(400, 64), half, seeded(count=400))
    unchanged = sum(torch.equal(one, other) for one, other in zip(found, batch, strict=True))
    assert 150 < unchanged < 250


def test_crop_takes_any_run_of_valid_frames() -> None:
    valid_frames = np.array([64, 40, 32, 10]).repeat(200)
    found, found_valid = augment(numbered_frames(valid_frames), valid_frames, only("crop"), seeded(count=800))
    assert found.shape == (800, 32, 32)
    assert np.array_equal(found_valid, valid_frames.clip(max=32))
    starts = found[:, 0, 0].reshape(4, 200)
    assert set(starts[0].tolist()) == set(range(33))
    assert set(starts[1].tolist()) == set(range(9))
    assert not starts[2:].any()
    inside = ~is_padding(found_valid, 32)
    assert torch.equal(found[..., 0][inside], (found[:, :1, 0] + torch.arange(32))[inside])


def test_roll_rotates_the_valid_frames_and_never_by_nothing() -> None:
    valid_frames = np.array([5, 2, 1]).repeat(300)
    found, _ = augment(numbered_frames(valid_frames), valid_frames, only("roll"), seeded(count=900))
    firsts = found[:, 0, 0].reshape(3, 300)
    assert [set(row.tolist()) for row in firsts] == [{1, 2, 3, 4}, {1}, {0}]
    rotated = (found[:300, :1, 0] + torch.arange(5)) % 5
    assert torch.equal(found[:300, :5, 0], rotated)


def test_gain_in_decibels(batch: Tensor) -> None:
    found, _ = augment(batch.repeat(50, 1, 1), VALID.repeat(50), only("gain"), seeded(count=300))
    shift = (found - batch.repeat(50, 1, 1))[:, 0]
    decibels = shift.mean(1) * AUDIO.norm_scale * 10 / np.log(10)
    assert shift.std(1).max() < 1e-6
    assert decibels.abs().max() <= 6
    assert decibels.std() == pytest.approx(12 / np.sqrt(12), rel=0.1)


def test_random_eq_has_its_spread_and_is_linear_between_knots() -> None:
    audio = replace(AUDIO, n_mels=22)
    config = AugmentConfig(eq_p=1.0, eq_knots=8, eq_nats=3.0)
    response = random_eq(config, audio, seeded(count=2000)) * audio.norm_scale
    np.testing.assert_allclose(response[:, ::3].std(0), 3.0, rtol=0.08)  # 22 = 7 * 3 + 1
    bends = np.diff(response, n=2)
    assert np.abs(bends[:, [0, 1, 3, 4]]).max() < 1e-4
    assert np.abs(bends[:, 2]).mean() > 0.5
    found, _ = augment(torch.zeros(4, 64, 32), np.full(4, 64), config, seeded(count=4))
    assert torch.equal(found, found[:, :1].expand_as(found))


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
    batch = noise(600, 64, 32)
    batch[is_padding(valid_frames)] = AUDIO.silence
    found, found_valid = augment(batch, valid_frames, DEVICES, seeded(count=600), RESPONSES)
    assert np.array_equal(found_valid, valid_frames)
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
        found, _ = augment(batch, np.full(1000, 64), config, seeded(count=1000), RESPONSES)
        assert found[:, 0].any(1).float().mean() == pytest.approx(share, abs=0.05)


def test_devices_without_their_offsets_are_an_error(batch: Tensor) -> None:
    with pytest.raises(ValueError, match=r"augment\.responses = \('devices/',\) are missing"):
        augment(batch, VALID, DEVICES, seeded())


def test_mixstyle_mixes_band_statistics_of_two_clips() -> None:
    """Two clips that differ by an affine map of each band stay on the line between them."""
    base = noise(64, 32, seed=3)
    clips = torch.stack([base, 3 * base + 5])
    config = AugmentConfig(mixstyle_p=1.0, mixstyle_alpha=1.0)
    moved = 0
    for seed in range(20):
        found, _ = augment(clips, np.full(2, 64), config, seeded(seed, 2))
        share = ((found.mean(1) - clips[0].mean(0)) / (clips[1] - clips[0]).mean(0)).mean(1, keepdim=True)
        torch.testing.assert_close(found, torch.lerp(clips[0], clips[1], share[:, None]), atol=1e-3, rtol=1e-3)
        moved += int(0.01 < share[0] < 0.99)
    assert moved >= 4


def test_mixstyle_and_mixup_stay_within_a_mixing_group() -> None:
    """A clip is the same whatever the other groups of the batch hold, and whether they are there."""
    config = replace(ALL, mixup_alpha=1.0, mixstyle_alpha=1.0)
    target = np.eye(6, dtype=np.float32)

    def mixed(log_mel: Tensor, count: int) -> Tensor:
        draws = seeded(3, count, 3)
        log_mel, valid_frames = augment(log_mel, VALID[:count], config, draws)
        found, _, drawn = draw_mixup(target[:count], valid_frames, config, draws, SOUNDING[:count])
        assert not found[:3, 3:].any()
        return apply_mixup(log_mel, tensors(drawn))

    batch = noise(6, 64, 32)
    other = torch.cat([batch[:3], noise(3, 64, 32, seed=4)])
    assert torch.equal(mixed(batch, 6)[:3], mixed(other, 6)[:3])
    torch.testing.assert_close(mixed(batch, 6)[:3], mixed(batch[:3], 3))


def test_mixstyle_uses_valid_frames_only(batch: Tensor) -> None:
    other_padding = torch.where(is_padding(VALID)[:, :, None], 99.0, batch)
    one, two = (augment(clips, VALID, only("freq_mixstyle"), seeded())[0] for clips in (batch, other_padding))
    inside = ~is_padding(VALID)
    assert torch.equal(one[inside], two[inside])


def test_mixstyle_takes_nothing_from_a_silent_clip() -> None:
    clips = noise(2, 64, 32)
    clips[1] = AUDIO.silence
    weight, frames = torch.full((2,), 0.3), torch.tensor([64, 64])
    found = freq_mixstyle(clips, frames, weight, torch.tensor([1, 0]))
    assert torch.equal(found[0], clips[0])


def test_spec_augment_masks_one_stripe_each_way_to_the_mean(batch: Tensor) -> None:
    most_bands = most_frames = 0
    for seed in range(100):
        found, _ = augment(batch, VALID, only("spec_augment"), seeded(seed))
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


@given(
    seed=st.integers(0, 2**32),
    patch_size=st.tuples(st.integers(2, 9), st.integers(1, 9)),
    n_mels=st.integers(1, 32),
    start=st.integers(0, 40),
)
def test_hidden_patches_are_those_of_which_spec_augment_hides_every_value(
    seed: int, patch_size: tuple[int, int], n_mels: int, start: int
) -> None:
    config = AugmentConfig(freq_mask_param=20, time_mask_param=30)
    valid_frames = np.array([64, 64, 50, 37, 64, 20])
    drawn = draw_coloration(valid_frames, config, replace(AUDIO, n_mels=n_mels), seeded(seed))
    masked = spec_augment(
        noise(6, 64, n_mels),
        torch.from_numpy(valid_frames),
        *(tensors(drawn)[name] for name in ("band_stripe", "frame_stripe")),
    )
    changed = masked != noise(6, 64, n_mels)
    grid = grid_size(24, n_mels, patch_size)
    # what pads a segment to whole patches hides nothing
    wanted = patchify(changed[:, start : start + 24], patch_size, 1.0).bool().all(2).numpy()
    whole = start + patch_size[0] * (1 + np.arange(grid[0])) <= np.minimum(start + 24, valid_frames[:, None])
    whole = np.repeat(whole, grid[1], axis=1)
    found = hidden_patches(drawn, patch_size, grid, n_mels, start)
    assert np.array_equal(found & whole, wanted & whole)


def test_mixup_mixes_inputs_and_targets_alike() -> None:
    """Clip k is k everywhere, so that the value of a mixture shows its components."""
    values = torch.arange(6.0)
    batch = values[:, None, None].repeat(1, 64, 32)
    mixed = 0
    for seed in range(10):
        target, valid_frames, drawn = draw_mixup(np.eye(6, dtype=np.float32), VALID, ALL, seeded(seed), SOUNDING)
        log_mel, target = apply_mixup(batch, tensors(drawn)), torch.from_numpy(target)
        torch.testing.assert_close(target.sum(1), torch.ones(6))
        torch.testing.assert_close(log_mel, (target @ values)[:, None, None].expand_as(log_mel))
        assert ((target > 0).sum(1) <= 2).all()
        mixed += int(((target > 0).sum(1) == 2).sum())
        for clip in range(6):
            parts = target[clip].nonzero()[:, 0]
            assert clip in parts
            assert valid_frames[clip] == VALID[parts.numpy()].max()
    assert mixed > 40


def test_nothing_is_mixed_with_a_silent_clip() -> None:
    silent = SOUNDING.copy()
    silent[2] = False
    for seed in range(10):
        target, valid_frames, drawn = draw_mixup(np.eye(6, dtype=np.float32), VALID, ALL, seeded(seed), silent)
        taker = int(drawn["mixup_partner"].tolist().index(2))
        assert target[taker].tolist() == np.eye(6)[taker].tolist()
        assert valid_frames[taker] == VALID[taker]


def test_autocast_changes_no_augmentation() -> None:
    """Training augments under autocast, whose matrix products would be too imprecise for band statistics."""
    log_mel = -1 + 0.1 * noise(6, 64, 32, seed=0)
    for name in SWITCHES:
        plain, _ = augment(log_mel, VALID, only(name), seeded(1))
        with torch.autocast("cpu", torch.bfloat16):
            found, _ = augment(log_mel, VALID, only(name), seeded(1))
        assert torch.equal(found, plain), name
