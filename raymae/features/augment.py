"""Seeded augmentations of log-mel batches: geometry (crop, roll, gain), coloration (device, EQ, MixStyle, masks).

Each takes and returns normalised log-mels (B, T, F) and their valid frames (B,), and draws for every clip independently
from the given generator only. Its device may differ from the batch's: a CPU generator gives the same draws on every
accelerator. Padding stays silence, and the valid frames stay in front of it. A setting that switches an augmentation
off makes it the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Generator, Tensor

from raymae.config import CONSTANT, AudioConfig, AugmentConfig, FinetuneConfig

Offsets = NDArray[np.float32]
"""(n, F): what n devices add to a normalised log-mel (`raymae.audio.impulse_responses.Responses.offsets`)."""
Geometry = Callable[[Tensor, Tensor, AugmentConfig, AudioConfig, Generator], tuple[Tensor, Tensor]]
Coloration = Callable[[Tensor, Tensor, AugmentConfig, AudioConfig, Generator, Offsets | None], tuple[Tensor, Tensor]]

NATS_PER_DB = log(10) / 10


def apply_geometry(
    log_mel: Tensor, valid_frames: Tensor, config: AugmentConfig, audio: AudioConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Apply `GEOMETRY`: which frames of a clip are used, and its level."""
    for augmentation in GEOMETRY:
        log_mel, valid_frames = augmentation(log_mel, valid_frames, config, audio, generator)
    return log_mel, valid_frames


def apply_coloration(
    log_mel: Tensor,
    valid_frames: Tensor,
    config: AugmentConfig,
    audio: AudioConfig,
    generator: Generator,
    responses: Offsets | None = None,
) -> Tensor:
    """Apply `COLORATION`: the same frames as recorded by another device, with stripes masked.

    `responses` (n, F) are the offsets of `config.responses`, as `raymae.audio.impulse_responses` reads them.
    """
    for augmentation in COLORATION:
        log_mel, valid_frames = augmentation(log_mel, valid_frames, config, audio, generator, responses)
    return log_mel


def crop_frames(config: AugmentConfig, audio: AudioConfig) -> int:
    """Frames of a random crop, or of the whole clip without `crop_seconds`."""
    return audio.frames_of(config.crop_seconds)


def segment_frames(config: FinetuneConfig, audio: AudioConfig) -> int:
    """Frames of a classifier's encoder input: of a segment, or else of a crop."""
    return min(crop_frames(config.augment, audio), audio.frames_of(config.segment_seconds))


def crop(
    log_mel: Tensor, valid_frames: Tensor, config: AugmentConfig, audio: AudioConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Cut `crop_seconds` at a random position from each clip's valid frames; a shorter clip keeps them all."""
    n_frames = crop_frames(config, audio)
    if n_frames >= log_mel.shape[1]:
        return log_mel, valid_frames
    starts = _integers((valid_frames - n_frames + 1).clamp(min=1), generator)
    frames = starts[:, None] + torch.arange(n_frames, device=log_mel.device)
    return _take_frames(log_mel, frames), valid_frames.clamp(max=n_frames)


def roll(
    log_mel: Tensor, valid_frames: Tensor, config: AugmentConfig, audio: AudioConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Rotate each clip's valid frames by 1 to valid_frames - 1 frames, with probability `roll_p`."""
    if not config.roll_p:
        return log_mel, valid_frames
    shifts = 1 + _integers((valid_frames - 1).clamp(min=1), generator)
    shifts = shifts * _coins(config.roll_p, log_mel, generator)
    frames = torch.arange(log_mel.shape[1], device=log_mel.device)
    rolled = (frames - shifts[:, None]) % valid_frames[:, None]
    return _take_frames(log_mel, torch.where(frames < valid_frames[:, None], rolled, frames)), valid_frames


def gain(
    log_mel: Tensor, valid_frames: Tensor, config: AugmentConfig, audio: AudioConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Change each clip's level by a uniform draw from -`gain_db` to `gain_db`."""
    if not config.gain_db:
        return log_mel, valid_frames
    decibels = config.gain_db * (2 * _uniform(log_mel, generator) - 1)
    return _add_response(log_mel, valid_frames, decibels[:, None] * NATS_PER_DB / audio.norm_scale), valid_frames


def random_eq(
    log_mel: Tensor,
    valid_frames: Tensor,
    config: AugmentConfig,
    audio: AudioConfig,
    generator: Generator,
    responses: Offsets | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a random smooth frequency response to each clip, as of another device, with probability `eq_p`.

    The response is piecewise linear between `eq_knots` normal draws with a deviation of `eq_nats` nats of power, spread
    evenly from the lowest to the highest band. Convolution with an impulse response that is short against the window is
    such an offset of the log-mel, wherever the power is well above `log_offset`: with windows of 96 and 25 ms a band's
    mean is off by 0.01 and 0.03 nats for noise through such a filter, by 0.02 and 0.1 for gliding tones. Responses of
    real microphones deviate by 0.5 to 2.3 nats up to 8 kHz and by 2.4 to 3.8 up to 16 kHz (MicIRP), these random ones
    by 2.1 about their own mean.
    """
    if not config.eq_p:
        return log_mel, valid_frames
    count, _, n_mels = log_mel.shape
    knots = torch.randn(count, 1, config.eq_knots, generator=generator, device=generator.device)
    knots = knots.to(log_mel.device) * (config.eq_nats / audio.norm_scale)
    response = F.interpolate(knots, size=n_mels, mode="linear", align_corners=True)[:, 0]
    response = response * _coins(config.eq_p, log_mel, generator)[:, None]
    return _add_response(log_mel, valid_frames, response), valid_frames


def device_response(
    log_mel: Tensor,
    valid_frames: Tensor,
    config: AugmentConfig,
    audio: AudioConfig,
    generator: Generator,
    responses: Offsets | None = None,
) -> tuple[Tensor, Tensor]:
    """Add one of the measured `responses` (n, F) to each clip, with probability `response_p`.

    Against true convolution with six microphones (MicIRP), with windows of 96 and 25 ms, a band's mean is off by 0.01
    and 0.02 nats (0.03 and 0.08 dB) for noise, by 0.03 and 0.1 for gliding tones, and a single value by 0.06 to 0.25.
    The error is about 1 nat within a factor of 100 of `log_offset`, and for a room with a reverberation time of 1 s.

    Raises:
        ValueError: `config` has responses but their offsets are missing.
    """
    if not config.response_share:
        return log_mel, valid_frames
    if responses is None:
        raise ValueError(
            f"the offsets of augment.responses = {config.responses} are missing: read them with read_responses"
        )
    count = torch.full((len(log_mel),), len(responses), device=generator.device)
    chosen = torch.from_numpy(responses[_integers(count, generator).cpu().numpy()]).to(log_mel.device)
    chosen = chosen * _coins(config.response_share, log_mel, generator)[:, None]
    return _add_response(log_mel, valid_frames, chosen), valid_frames


def freq_mixstyle(
    log_mel: Tensor,
    valid_frames: Tensor,
    config: AugmentConfig,
    audio: AudioConfig,
    generator: Generator,
    responses: Offsets | None = None,
) -> tuple[Tensor, Tensor]:
    """Freq-MixStyle (Kim et al. 2022; Schmid et al., DCASE 2022), for each clip with probability `mixstyle_p`.

    The mean and standard deviation of every band over the valid frames are replaced by a mixture, with a weight from
    Beta(alpha, alpha), of the clip's own and those of another clip of the batch, unless that one is silent.
    """
    if not config.mixstyle_p:
        return log_mel, valid_frames
    weight = _beta(config.mixstyle_alpha, log_mel, generator)
    weight = torch.where(_coins(config.mixstyle_p, log_mel, generator), weight, 1.0)[:, None]
    partner = _permutation(log_mel, generator)
    mean = _band_means(log_mel, valid_frames)
    variance = _band_means(log_mel.square(), valid_frames) - mean.square()
    weight = torch.where(variance.amax(1, keepdim=True)[partner] <= CONSTANT**2, 1.0, weight)
    deviation = (variance.clamp(min=0) + 1e-6).sqrt()
    scale = (weight * deviation + (1 - weight) * deviation[partner]) / deviation
    offset = weight * mean + (1 - weight) * mean[partner] - scale * mean
    change = torch.addcmul(offset[:, None], log_mel, scale[:, None] - 1)
    return change.mul_(_valid(log_mel, valid_frames)[:, :, None]).add_(log_mel), valid_frames


def spec_augment(
    log_mel: Tensor,
    valid_frames: Tensor,
    config: AugmentConfig,
    audio: AudioConfig,
    generator: Generator,
    responses: Offsets | None = None,
) -> tuple[Tensor, Tensor]:
    """SpecAugment (Park et al. 2019): mask up to `freq_mask_param` bands and `time_mask_param` valid frames.

    Masked values are set to the clip's mean: silence would add sharp edges, and it already marks padding.
    """
    if not (config.freq_mask_param or config.time_mask_param):
        return log_mel, valid_frames
    n_frames, n_mels = log_mel.shape[1:]
    bands = _stripe(n_mels, torch.full_like(valid_frames, n_mels), config.freq_mask_param, generator).to(log_mel.dtype)
    frames = _stripe(n_frames, valid_frames, config.time_mask_param, generator).to(log_mel.dtype)
    others = _valid(log_mel, valid_frames) - frames
    masked = torch.addcmul(frames[:, :, None], others[:, :, None], bands[:, None])
    mean = _band_means(log_mel, valid_frames).mean(1)
    return log_mel.lerp(mean[:, None, None], masked), valid_frames


GEOMETRY: tuple[Geometry, ...] = (crop, roll, gain)
"""In the order of application; two views of a clip have these in common."""
COLORATION: tuple[Coloration, ...] = (device_response, random_eq, freq_mixstyle, spec_augment)
"""In the order of application, after `GEOMETRY`; masks come last, so that nothing changes the masked values."""


def mixup(
    log_mel: Tensor,
    target: Tensor,
    valid_frames: Tensor,
    config: AugmentConfig,
    generator: Generator,
    sounding: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """mixup (Zhang et al. 2018) of a batch with probability `mixup_p`: log_mel, soft target (B, C), valid_frames.

    Each clip is mixed with another one of the batch with its own weight from Beta(alpha, alpha); the mixture has the
    valid frames of the longer of the two. A clip whose partner is not `sounding` (B,) keeps its own sound and target.
    """
    if torch.rand((), generator=generator, device=generator.device) >= config.mixup_p:
        return log_mel, target, valid_frames
    weight = _beta(config.mixup_alpha, log_mel, generator)
    partner = _permutation(log_mel, generator)
    weight = torch.where(sounding[partner], weight, 1.0)
    return (
        log_mel.index_select(0, partner).lerp_(log_mel, weight[:, None, None]),
        target[partner].lerp(target, weight[:, None]),
        torch.maximum(valid_frames, valid_frames[partner]),
    )


def _valid(log_mel: Tensor, valid_frames: Tensor) -> Tensor:
    """1 for frames that are not padding, 0 for those that are, (B, T)."""
    frames = torch.arange(log_mel.shape[1], device=log_mel.device)
    return (frames < valid_frames[:, None]).to(log_mel.dtype)


def _take_frames(log_mel: Tensor, frames: Tensor) -> Tensor:
    """Select the frames (B, n) of each clip: (B, n, F). Copying whole rows is ten times faster than gather."""
    count, n_frames, n_mels = log_mel.shape
    rows = frames + n_frames * torch.arange(count, device=log_mel.device)[:, None]
    return log_mel.reshape(-1, n_mels).index_select(0, rows.flatten()).reshape(count, -1, n_mels)


def _add_response(log_mel: Tensor, valid_frames: Tensor, response: Tensor) -> Tensor:
    """Add a response (B, F) or (B, 1), in units of the normalised log-mel, to the valid frames."""
    return log_mel.addcmul(response[:, None], _valid(log_mel, valid_frames)[:, :, None])


def _band_means(values: Tensor, valid_frames: Tensor) -> Tensor:
    """Mean of `values` (B, T, F) over the valid frames: (B, F)."""
    with torch.autocast(values.device.type, enabled=False):  # variances are differences of these means
        return torch.bmm(_valid(values, valid_frames)[:, None], values)[:, 0] / valid_frames[:, None]


def _stripe(size: int, limit: Tensor, largest: int, generator: Generator) -> Tensor:
    """Random stripes (B, size), bool, of 0 to `largest` positions, all below `limit` (B,)."""
    widths = _integers(limit.clamp(max=largest) + 1, generator)
    starts = _integers(limit - widths + 1, generator)
    positions = torch.arange(size, device=limit.device)
    return (positions >= starts[:, None]) & (positions < (starts + widths)[:, None])


def _uniform(like: Tensor, generator: Generator) -> Tensor:
    """A uniform draw from [0, 1) for each item of a batch."""
    return torch.rand(len(like), generator=generator, device=generator.device).to(like.device)


def _coins(p: float, like: Tensor, generator: Generator) -> Tensor:
    """True with probability p for each item of a batch."""
    return _uniform(like, generator) < p


def _integers(count: Tensor, generator: Generator) -> Tensor:
    """A uniform draw from 0 to count - 1 for each of `count` (B,)."""
    return (_uniform(count, generator) * count).long()


def _permutation(like: Tensor, generator: Generator) -> Tensor:
    return torch.randperm(len(like), generator=generator, device=generator.device).to(like.device)


def _beta(alpha: float, like: Tensor, generator: Generator) -> Tensor:
    """A draw from Beta(alpha, alpha) for each item of a batch; torch's own sampler takes no generator."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    draws = np.random.default_rng(seed).beta(alpha, alpha, len(like))
    return torch.from_numpy(draws).to(like.device, like.dtype)
