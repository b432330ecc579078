"""Augmentations of log-mel batches: geometry (crop, roll, gain), coloration (device, EQ, MixStyle, masks), mixup.

Each has two parts. What is drawn (`draw_…`) is decided on the CPU ahead of the step, by the clip's place in the run, as
small numpy arrays. The rest is arithmetic on the batch, on any device, that reads nothing back. Clips draw
independently, and mix only within their mixing group. A setting that switches an augmentation off draws nothing for it.
Padding stays silence, and the valid frames stay in front of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymae.config import CONSTANT, AudioConfig, AugmentConfig, FinetuneConfig
from raymae.features.draws import Draws
from raymae.models.precision import full_precision

Offsets = NDArray[np.float32]
"""(n, F): what n devices add to a normalised log-mel (`raymae.audio.impulse_responses.Responses.offsets`)."""
Drawn = dict[str, NDArray[Any]]
"""What is drawn for a batch, by name, for the device."""

NATS_PER_DB = log(10) / 10


# Geometry: which frames of a clip are used -------------------------------------------------------------------------


class Geometry(NamedTuple):
    """The frames that are used of each clip."""

    starts: NDArray[np.int64]
    """(B,): the crop's first frame."""
    shifts: NDArray[np.int64]
    """(B,): frames by which the crop's valid frames are rotated."""
    valid_frames: NDArray[np.int64]
    """(B,): valid frames of the crop."""
    length: int
    """Frames of the crop."""


def crop_frames(config: AugmentConfig, audio: AudioConfig) -> int:
    """Frames of a random crop, or of the whole clip without `crop_seconds`."""
    return audio.frames_of(config.crop_seconds)


def segment_frames(config: FinetuneConfig, audio: AudioConfig) -> int:
    """Frames of a classifier's encoder input: of a segment, or else of a crop."""
    return min(crop_frames(config.augment, audio), audio.frames_of(config.segment_seconds))


def draw_geometry(
    valid_frames: NDArray[np.integer], config: AugmentConfig, audio: AudioConfig, draws: Draws
) -> Geometry:
    """Draw `crop_seconds` of each clip's valid frames (B,), a shorter clip keeps them all; and with probability
    `roll_p` their rotation by 1 to valid_frames - 1 frames."""
    valid = np.asarray(valid_frames, np.int64)
    length = min(crop_frames(config, audio), audio.n_frames)
    starts = np.zeros_like(valid)
    if length < audio.n_frames:
        starts = draws.integers("crop", np.maximum(valid - length + 1, 1))
        valid = np.minimum(valid, length)
    shifts = np.zeros_like(valid)
    if config.roll_p:
        shifts = 1 + draws.integers("roll", np.maximum(valid - 1, 1))
        shifts = shifts % np.maximum(valid, 1) * draws.coins("roll_p", config.roll_p)
    return Geometry(starts, shifts, valid, length)


def apply_geometry(clips: Sequence[NDArray[np.floating]], geometry: Geometry, out: NDArray[np.floating]) -> None:
    """Copy the frames of each clip (T, F) to `out` (B, length, F)."""
    n = geometry.length
    numbers = zip(geometry.starts.tolist(), geometry.shifts.tolist(), geometry.valid_frames.tolist(), strict=True)
    for clip, target, (start, shift, valid) in zip(clips, out, numbers, strict=True):
        end = start + valid
        target[:shift] = clip[end - shift : end]
        target[shift:valid] = clip[start : end - shift]
        target[valid:] = clip[end : start + n]


# Coloration: the same frames as recorded by another device ----------------------------------------------------------


def draw_gain(config: AugmentConfig, audio: AudioConfig, draws: Draws) -> NDArray[np.float64] | None:
    """(B, 1): each clip's change of level, uniform from -`gain_db` to `gain_db`, in units of the log-mel."""
    if not config.gain_db:
        return None
    decibels = config.gain_db * (2 * draws.one("gain") - 1)
    return decibels[:, None] * (NATS_PER_DB / audio.norm_scale)


def random_eq(config: AugmentConfig, audio: AudioConfig, draws: Draws) -> NDArray[np.float64]:
    """(B, F): a random smooth frequency response for each clip, as of another device, with probability `eq_p`.

    The response is piecewise linear between `eq_knots` normal draws with a deviation of `eq_nats` nats of power, spread
    evenly from the lowest to the highest band. Convolution with an impulse response that is short against the window is
    such an offset of the log-mel, wherever the power is well above `log_offset`: with windows of 96 and 25 ms a band's
    mean is off by 0.01 and 0.03 nats for noise through such a filter, by 0.02 and 0.1 for gliding tones. Responses of
    real microphones deviate by 0.5 to 2.3 nats up to 8 kHz and by 2.4 to 3.8 up to 16 kHz (MicIRP), these random ones
    by 2.1 about their own mean.
    """
    places = np.linspace(0, config.eq_knots - 1, audio.n_mels)
    tents = np.maximum(0, 1 - np.abs(places - np.arange(config.eq_knots)[:, None]))  # (knots, F)
    response = draws.normal("eq", config.eq_knots) @ tents * (config.eq_nats / audio.norm_scale)
    return np.asarray(response * draws.coins("eq_p", config.eq_p)[:, None])


def device_response(config: AugmentConfig, responses: Offsets | None, draws: Draws) -> NDArray[np.float32]:
    """(B, F): one of the measured `responses` (n, F) for each clip, with probability `response_p`, else 0.

    Against true convolution with six microphones (MicIRP), with windows of 96 and 25 ms, a band's mean is off by 0.01
    and 0.02 nats (0.03 and 0.08 dB) for noise, by 0.03 and 0.1 for gliding tones, and a single value by 0.06 to 0.25.
    The error is about 1 nat within a factor of 100 of `log_offset`, and for a room with a reverberation time of 1 s.

    Raises:
        ValueError: `config` has responses but their offsets are missing.
    """
    if responses is None:
        raise ValueError(
            f"the offsets of augment.responses = {config.responses} are missing: read them with read_responses"
        )
    chosen = responses[draws.integers("response", np.full(len(draws.places), len(responses)))]
    return np.asarray(chosen * draws.coins("response_p", config.response_share)[:, None], np.float32)


def draw_coloration(
    valid_frames: NDArray[np.integer],
    config: AugmentConfig,
    audio: AudioConfig,
    draws: Draws,
    responses: Offsets | None = None,
    gain: NDArray[np.float64] | None = None,
) -> Drawn:
    """What `apply_coloration` takes, for clips of so many valid frames (B,).

    `responses` (n, F) are the offsets of `config.responses`, `gain` (B, 1) that of `draw_gain`.
    """
    drawn: Drawn = {}
    offsets: list[NDArray[np.floating]] = [] if gain is None else [gain]
    if config.response_share and config.responses_by == "offsets":
        offsets.append(device_response(config, responses, draws))
    if config.eq_p:
        offsets.append(random_eq(config, audio, draws))
    if offsets:
        drawn["offsets"] = np.broadcast_to(sum(offsets), (len(valid_frames), audio.n_mels)).astype(np.float32)
    if config.mixstyle_p:
        weight = draws.beta("mixstyle", config.mixstyle_alpha)
        drawn["style_weight"] = np.where(draws.coins("mixstyle_p", config.mixstyle_p), weight, 1).astype(np.float32)
        drawn["style_partner"] = draws.partners("mixstyle_partner")
    if config.freq_mask_param or config.time_mask_param:
        bands = np.full(len(valid_frames), audio.n_mels)
        drawn["band_stripe"] = _stripe(bands, config.freq_mask_param, draws.named("bands"))
        drawn["frame_stripe"] = _stripe(np.asarray(valid_frames), config.time_mask_param, draws.named("frames"))
    return drawn


def _stripe(limit: NDArray[np.integer], largest: int, draws: Draws) -> NDArray[np.int64]:
    """(B, 2): first position and end of stripes of 0 to `largest` positions, all below `limit` (B,)."""
    widths = draws.integers("width", np.minimum(limit, largest) + 1)
    starts = draws.integers("start", limit - widths + 1)
    return np.stack([starts, starts + widths], 1)


def hidden_patches(
    drawn: Drawn, patch_size: tuple[int, int], grid: tuple[int, int], n_mels: int, start: int = 0
) -> NDArray[np.bool_] | None:
    """(B, L): the patches without padding of which SpecAugment hides every value; None without it.

    `start` is the frame at which the first column of patches begins; the last row may have fewer bands than others.
    """
    if "band_stripe" not in drawn:
        return None
    (columns, rows), (frames, bands) = grid, patch_size
    column = start + frames * np.arange(columns)
    row = bands * np.arange(rows)
    first, end = (drawn["frame_stripe"][:, one, None] for one in (0, 1))
    hidden_columns = (first <= column) & (column + frames <= end)
    first, end = (drawn["band_stripe"][:, one, None] for one in (0, 1))
    hidden_rows = (first <= row) & (np.minimum(row + bands, n_mels) <= end)
    return np.asarray((hidden_columns[:, :, None] | hidden_rows[:, None, :]).reshape(-1, columns * rows))


def apply_coloration(log_mel: Tensor, valid_frames: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    """The same frames (B, T, F) as recorded by another device, with stripes masked, by what is drawn.

    Masks come last, so that nothing changes the masked values.
    """
    return apply_stripes(apply_device(log_mel, valid_frames, drawn), valid_frames, drawn)


def apply_device(log_mel: Tensor, valid_frames: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    """The same frames (B, T, F) as recorded by another device, by what is drawn: coloration without masks."""
    if "offsets" in drawn:
        log_mel = add_offsets(log_mel, valid_frames, drawn["offsets"])
    if "style_weight" in drawn:
        log_mel = freq_mixstyle(log_mel, valid_frames, drawn["style_weight"], drawn["style_partner"])
    return log_mel


def apply_stripes(log_mel: Tensor, valid_frames: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    """Mask the stripes of SpecAugment that are drawn, if any."""
    if "band_stripe" not in drawn:
        return log_mel
    return spec_augment(log_mel, valid_frames, drawn["band_stripe"], drawn["frame_stripe"])


def add_offsets(log_mel: Tensor, valid_frames: Tensor, offsets: Tensor) -> Tensor:
    """Add a response (B, F), in units of the normalised log-mel, to the valid frames of log-mels (B, T, F)."""
    return log_mel.addcmul(offsets[:, None], _valid(log_mel, valid_frames)[:, :, None])


def freq_mixstyle(log_mel: Tensor, valid_frames: Tensor, weight: Tensor, partner: Tensor) -> Tensor:
    """Freq-MixStyle (Kim et al. 2022; Schmid et al., DCASE 2022) of log-mels (B, T, F).

    The mean and standard deviation of every band over the valid frames are replaced by a mixture, with `weight` (B,),
    of the clip's own and those of its `partner` (B,), unless that one is silent.
    """
    mean = _band_means(log_mel, valid_frames)
    variance = _band_means(log_mel.square(), valid_frames) - mean.square()
    weight = torch.where(variance.amax(1)[partner] <= CONSTANT**2, 1.0, weight)[:, None]
    deviation = (variance.clamp(min=0) + 1e-6).sqrt()
    scale = (weight * deviation + (1 - weight) * deviation[partner]) / deviation
    offset = weight * mean + (1 - weight) * mean[partner] - scale * mean
    change = torch.addcmul(offset[:, None], log_mel, scale[:, None] - 1)
    return change.mul_(_valid(log_mel, valid_frames)[:, :, None]).add_(log_mel)


def spec_augment(log_mel: Tensor, valid_frames: Tensor, band_stripe: Tensor, frame_stripe: Tensor) -> Tensor:
    """SpecAugment (Park et al. 2019): mask stripes [first, end) (B, 2) of bands and of valid frames.

    Masked values are set to the clip's mean: silence would add sharp edges, and it already marks padding.
    """
    bands, frames = (
        _between(size, stripe).to(log_mel.dtype)
        for size, stripe in ((log_mel.shape[2], band_stripe), (log_mel.shape[1], frame_stripe))
    )
    others = _valid(log_mel, valid_frames) - frames
    masked = torch.addcmul(frames[:, :, None], others[:, :, None], bands[:, None])
    mean = _band_means(log_mel, valid_frames).mean(1)
    return log_mel.lerp(mean[:, None, None], masked)


# Mixup --------------------------------------------------------------------------------------------------------------


def draw_mixup(
    target: NDArray[np.float32],
    valid_frames: NDArray[np.integer],
    config: AugmentConfig,
    draws: Draws,
    sounding: NDArray[np.bool_],
) -> tuple[NDArray[np.float32], NDArray[np.int64], Drawn]:
    """Draw mixup (Zhang et al. 2018), of a mixing group with probability `mixup_p`: the soft targets (B, C), the valid
    frames (B,) and what `apply_mixup` takes.

    Each clip is mixed with another one of its group with its own weight from Beta(alpha, alpha); the mixture has the
    valid frames of the longer of the two. A clip whose partner is not `sounding` (B,) keeps its own sound and target.
    """
    valid = np.asarray(valid_frames, np.int64)
    if not config.mixup_p:
        return target, valid, {}
    partner = draws.partners("mixup_partner")
    mixed = draws.group_coins("mixup_p", config.mixup_p) & sounding[partner]
    weight = np.where(mixed, draws.beta("mixup", config.mixup_alpha), 1.0).astype(np.float32)
    found = target[partner] + weight[:, None] * (target - target[partner])
    valid = np.where(mixed, np.maximum(valid, valid[partner]), valid)
    return found.astype(np.float32), valid, {"mixup_weight": weight, "mixup_partner": partner}


def apply_mixup(log_mel: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    """Mix log-mels (B, T, F) as drawn."""
    if "mixup_weight" not in drawn:
        return log_mel
    return log_mel.index_select(0, drawn["mixup_partner"]).lerp_(log_mel, drawn["mixup_weight"][:, None, None])


def _valid(log_mel: Tensor, valid_frames: Tensor) -> Tensor:
    """1 for frames that are not padding, 0 for those that are, (B, T)."""
    frames = torch.arange(log_mel.shape[1], device=log_mel.device)
    return (frames < valid_frames[:, None]).to(log_mel.dtype)


def _between(size: int, stripe: Tensor) -> Tensor:
    """(B, size) bool: the positions within stripes [first, end) (B, 2)."""
    positions = torch.arange(size, device=stripe.device)
    return (positions >= stripe[:, :1]) & (positions < stripe[:, 1:])


def _band_means(values: Tensor, valid_frames: Tensor) -> Tensor:
    """Mean of `values` (B, T, F) over the valid frames: (B, F)."""
    with full_precision(values):  # variances are differences of these means
        return torch.bmm(_valid(values, valid_frames)[:, None], values)[:, 0] / valid_frames[:, None]
