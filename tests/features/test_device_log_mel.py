"""Log-mels on a device are those of the CPU: over all front ends, lengths and ends of waveforms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raymae.audio.logmel import LogMel, fit_length
from raymae.config import FRONT_ENDS, AudioConfig
from raymae.features.device_log_mel import DeviceLogMel
from tests.support.audio_files import TINY_AUDIO

TOLERANCE = 1e-3
SHORT = {name: replace(audio, clip_seconds=0.5) for name, audio in FRONT_ENDS.items()}
ODD = {
    "tiny": TINY_AUDIO,
    "plain": replace(TINY_AUDIO, pre_emphasis=0.0, hop_length=77, win_length=255),
    "kaldi": replace(TINY_AUDIO, framing="kaldi", log_floor="clamp", window="periodic"),
    "slaney": replace(TINY_AUDIO, mel_scale="slaney", hop_length=300, norm_scale=1.0),
}
AUDIOS = SHORT | ODD


def on_device(audio: AudioConfig, waveforms: list[NDArray[np.float32]], after: float) -> tuple[torch.Tensor, ...]:
    """The device's log-mels of waveforms, after the ends of which there is something else."""
    values = np.full((len(waveforms), audio.n_samples), after, np.float32)
    for row, waveform in zip(values, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return DeviceLogMel(audio)(torch.from_numpy(values), torch.tensor([len(one) for one in waveforms]))


def brown(count: int, seed: int, level: float) -> NDArray[np.float32]:
    """Noise whose high bands are 60 dB and more below its low ones, about a mean that isn't 0."""
    noise = np.cumsum(np.random.default_rng(seed).normal(size=count))
    return (level * (noise / max(1.0, np.abs(noise).max(initial=0)) + 0.1)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", AUDIOS)
@given(shares=st.lists(st.floats(0, 1), min_size=1, max_size=4), level=st.sampled_from([1e-4, 0.1, 8.0]))
def test_a_batch_has_the_log_mels_of_the_cpu(name: str, shares: list[float], level: float) -> None:
    audio = AUDIOS[name]
    waveforms = [brown(round(share * audio.n_samples), seed, level) for seed, share in enumerate(shares)]
    found, frames = on_device(audio, waveforms, after=0.5)
    log_mel = LogMel(audio)
    for one, valid, waveform in zip(found.numpy(), frames.tolist(), waveforms, strict=True):
        expected, count = fit_length(log_mel(waveform), audio.n_frames, audio.silence)
        assert valid == count
        np.testing.assert_allclose(one, expected, atol=TOLERANCE, rtol=0)
        assert (one[valid:] == np.float32(audio.silence)).all()


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_whole_clip_and_silence(name: str) -> None:
    audio = FRONT_ENDS[name]
    waveforms = [brown(audio.n_samples, 1, 0.5), np.zeros(audio.n_samples, np.float32)]
    found, frames = on_device(audio, waveforms, after=0.0)
    assert frames.tolist() == [audio.n_frames] * 2
    for one, waveform in zip(found.numpy(), waveforms, strict=True):
        np.testing.assert_allclose(one, LogMel(audio)(waveform), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", AUDIOS)
def test_nothing_is_read_back(name: str) -> None:
    """On the meta device a tensor has no values to read."""
    audio = AUDIOS[name]
    waveforms = torch.empty(3, audio.n_samples, device="meta")
    found, frames = DeviceLogMel(audio).to("meta")(waveforms, torch.empty(3, dtype=torch.int64, device="meta"))
    assert found.shape == (3, audio.n_frames, audio.n_mels)
    assert frames.shape == (3,)
