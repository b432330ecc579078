"""Log-mels that the training worker makes of waveforms on its device, ahead of the step, in the stream of the copies.

What is drawn (speed, crop, roll, mixing, responses, noise, gain) is decided on the CPU as for log-mels, and so are the
masks, for which it has to be known which patches sound. Waveforms don't tell: a recording that was resampled from 16
kHz has no sound in any patch above 8 kHz. So the device finds them in the log-mels that it makes, and the thread that
prepares the steps waits for one bit of each patch while the steps before are computed; the step itself never waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raymae.config import AudioConfig, AugmentConfig
from raymae.features import waveforms as waves
from raymae.features.augment import Drawn, Geometry, draw_geometry
from raymae.features.device_log_mel import DeviceLogMel
from raymae.features.draws import Draws
from raymae.models.patches import Grid, has_sound, patchify, valid_patches
from raymae.training.batches.passes import Clips
from raymae.training.batches.transfer import Transfer
from raymae.training.tasks.inputs import Frames


@dataclass(frozen=True)
class DeviceFrames(Frames):
    """Frames that lie on the device already."""

    transfer: Transfer = field(kw_only=True)

    def find_patches(
        self, grid: Grid, patch_size: tuple[int, int], silence: float, length: int, starts: Sequence[int]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The definitions for tensors, on the device; waits for it."""
        with torch.no_grad(), self.transfer.in_stream():
            log_mel, frames = self.log_mel.float(), self.transfer.copy(self.valid_frames)
            valid = []
            for start in starts:
                patches = patchify(log_mel[:, start : start + length], patch_size, silence)
                valid.append(valid_patches(patches, patch_size, grid[1], (frames - start).clamp(0, length)))
            found = torch.stack([has_sound(log_mel, frames)[:, None].expand_as(valid[0]), *valid], 1).cpu().numpy()
        return found[:, 1:], found[:, 0, 0]


@dataclass(frozen=True)
class Part:
    """What is drawn of the clips' waveforms."""

    geometry: Geometry
    drawn: Drawn
    """For the device, by name."""
    mix: Drawn
    """Weights and partners of the clips that are mixed."""


class DeviceInputs(nn.Module):
    """Takes the frames of waveforms on a device (`raymae.training.tasks.inputs.Inputs`).

    Args:
        responses: (R, taps), impulse responses to convolve with; None without `responses_by` = convolution.
    """

    responses: Tensor

    def __init__(self, audio: AudioConfig, config: AugmentConfig, responses: NDArray[np.float32] | None) -> None:
        super().__init__()
        self.audio, self.config = audio, config
        self.log_mel, self.speed = DeviceLogMel(audio), waves.Speed(config.speed_rates)
        self.register_buffer("responses", torch.from_numpy(np.zeros((0, 1)) if responses is None else responses))

    def take(self, clips: Clips, draws: Draws, mixing: Draws, transfer: Transfer) -> DeviceFrames:
        """Draw everything about some clips' waveforms, and start making their log-mels.

        `mixing` are the draws of the first clips, in the groups in which they may be mixed.
        """
        part = self.draw(clips, draws, mixing)
        host = transfer.empty(len(clips.values), self.audio.n_samples, dtype=torch.float32)
        for target, waveform in zip(host.numpy(), clips.values, strict=True):
            target[:] = waveform
        with torch.no_grad(), transfer.in_stream():
            self.to(transfer.device)
            drawn = {name: transfer.copy(values) for name, values in part.drawn.items()}
            log_mel = self(host.to(transfer.device, non_blocking=True), drawn, part.geometry.length)
        return DeviceFrames(log_mel, part.geometry.valid_frames, None, part.mix, transfer=transfer)

    def draw(self, clips: Clips, draws: Draws, mixing: Draws) -> Part:
        """Draw speed, geometry, mixing, responses, noise and gain.

        `first` is the first sample that is used and `held` the number of samples from there on; `lead` are the frames
        before the crop that its first windows reach back to.
        """
        audio, config = self.audio, self.config
        rate = waves.draw_speed(config, draws)
        played = waves.played_samples(clips.valid, rate, config, audio)
        frames = np.array([audio.frames(samples) for samples in played.tolist()], np.int64)
        geometry = draw_geometry(frames, config, audio, draws)
        whole = geometry.length >= audio.n_frames
        lead = geometry.starts if whole else np.minimum(geometry.starts, waves.lead_frames(audio))
        first = (geometry.starts - lead) * audio.hop_length
        held = np.clip(played - first, 1, waves.part_samples(geometry.length, audio))
        mix = waves.draw_wave_mix(config, mixing, sounding(clips.values, first, held, rate, config))
        if mix:
            geometry, held = mixed(geometry, held, lead, mix, audio)
        drawn = {"first": first, "held": held, "lead": lead, "shift": geometry.shifts, "valid": geometry.valid_frames}
        if rate is not None:
            drawn |= {"rate": rate, "played": played}
        if len(self.responses):
            drawn["response"] = waves.draw_responses(config, len(self.responses), draws)
        drawn |= mix | waves.draw_noise(config, draws) | waves.draw_wave_gain(config, draws)
        return Part(geometry, drawn, mix)

    def forward(self, waveforms: Tensor, drawn: Mapping[str, Tensor], length: int) -> Tensor:
        """Log-mels (B, length, F) float16 of waveforms (B, n) float32, zeros after their ends, as drawn."""
        held, valid = drawn["held"], drawn["valid"]
        if "rate" in drawn:
            waveforms = waves.cut(self.speed(waveforms, drawn["rate"]), drawn["played"])
        if length < self.audio.n_frames:
            waveforms = waves.take(waveforms, drawn["first"], waves.part_samples(length, self.audio))
        if "wave_weight" in drawn:
            waveforms = waves.mix_waves(waveforms, drawn["wave_weight"], drawn["wave_partner"])
        if "response" in drawn:
            waveforms = waves.convolve(waveforms, held, self.responses, drawn["response"])
        waveforms = waves.apply_level(waveforms, held, drawn)
        log_mel = self.log_mel(waveforms, held)[0].half()
        target = torch.arange(length, device=log_mel.device)
        source = drawn["lead"][:, None] + (target - drawn["shift"][:, None]) % valid[:, None]
        log_mel = log_mel.gather(1, source[:, :, None].expand(-1, -1, log_mel.shape[2]))
        return log_mel.masked_fill_((target >= valid[:, None])[:, :, None], self.audio.silence)


def mixed(
    geometry: Geometry, held: NDArray[np.int64], lead: NDArray[np.int64], mix: Drawn, audio: AudioConfig
) -> tuple[Geometry, NDArray[np.int64]]:
    """Geometry and held samples where the first clips are mixed: a mixture is as long as the longer of the two."""
    partner, changed = mix["wave_partner"], mix["wave_weight"] < 1
    first = slice(len(partner))
    held, valid = held.copy(), geometry.valid_frames.copy()
    held[first] = np.where(changed, np.maximum(held[first], held[partner]), held[first])
    frames = np.array([audio.frames(samples) for samples in held[first].tolist()], np.int64) - lead[first]
    valid[first] = np.where(changed, np.clip(frames, 1, geometry.length), valid[first])
    return geometry._replace(valid_frames=valid), held


def sounding(
    values: Sequence[NDArray[Any]],
    first: NDArray[np.int64],
    held: NDArray[np.int64],
    rate: NDArray[np.int64] | None,
    config: AugmentConfig,
) -> NDArray[np.bool_]:
    """(B,): the clips whose samples are not all the same in the part that is used; without mixing all of them."""
    if not config.wave_mix_p:
        return np.ones(len(values), np.bool_)
    speed = np.array([*config.speed_rates, 1.0])[-1 if rate is None else rate]
    begin = np.floor(first * speed).astype(np.int64)
    end = np.ceil((first + held) * speed).astype(np.int64)
    return np.array([np.ptp(one[start:stop]) > 0 for one, start, stop in zip(values, begin, end, strict=True)])
