"""What is decided on the host ahead of a step is what the models would find in the augmented batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from raymae.config import AugmentConfig
from raymae.features.augment import apply_coloration, draw_coloration
from raymae.models import AudioClassifier
from raymae.models.patches import has_sound
from raymae.training.batches.passes import Clips
from raymae.training.tasks.inputs import find_sound, take_frames
from tests.support.audio_files import TINY_AUDIO
from tests.support.masks import make_draws, tensors
from tests.support.training import EVERYTHING, TINY

COUNT = 40
# without MixStyle, which scales what hardly moves
CONFIG = replace(EVERYTHING, crop_seconds=None, mixstyle_p=0.0, freq_mask_param=20, time_mask_param=40)


def make_clips() -> Clips:
    """Clips of all lengths, with dropouts of all lengths; some are silent."""
    rng = np.random.default_rng(0)
    log_mel = rng.normal(size=(COUNT, TINY_AUDIO.n_frames, TINY_AUDIO.n_mels)).astype(np.float16)
    frames = rng.integers(1, TINY_AUDIO.n_frames + 1, COUNT)
    for clip, valid in zip(log_mel, frames, strict=True):
        first, last = np.sort(rng.integers(0, TINY_AUDIO.n_frames + 1, 2))
        clip[first:last] = TINY_AUDIO.silence
        clip[valid:] = TINY_AUDIO.silence
    log_mel[:3] = TINY_AUDIO.silence
    places = np.arange(COUNT)
    return Clips(places, places, list(log_mel), frames, np.ones(COUNT, np.float32), COUNT)


@pytest.mark.parametrize("segment_seconds", [None, 0.3, 0.2])
@pytest.mark.parametrize("config", [CONFIG, AugmentConfig(crop_seconds=0.25), replace(CONFIG, crop_seconds=0.45)])
@pytest.mark.parametrize("patch_size", [(8, 8), (6, 5)])
def test_the_host_finds_the_sound_that_the_model_finds(
    segment_seconds: float | None, config: AugmentConfig, patch_size: tuple[int, int]
) -> None:
    finetune = replace(TINY.finetune, segment_seconds=segment_seconds)
    classifier = AudioClassifier(TINY_AUDIO, replace(TINY.model, patch_size=patch_size), finetune, 2)
    clips, draws = make_clips(), make_draws(COUNT, group=COUNT)
    frames = take_frames(clips, config, TINY_AUDIO, draws, lambda *shape: torch.empty(shape, dtype=torch.float16))
    starts = classifier.segment_starts(frames.values.shape[1])
    sound = find_sound(frames, patch_size, TINY_AUDIO.silence, classifier.segment, starts)
    responses = np.zeros((1, TINY_AUDIO.n_mels), np.float32)
    drawn = draw_coloration(frames.valid_frames, config, TINY_AUDIO, draws, responses, frames.gain)
    found = sound.without_hidden(drawn)

    log_mel, valid_frames = frames.log_mel.float(), torch.from_numpy(frames.valid_frames)
    seen = []
    for one in (log_mel, apply_coloration(log_mel, valid_frames, tensors(drawn))):
        patches, rows = classifier.patchify(one, valid_frames)
        seen.append(classifier.encoder.valid(patches, rows).unflatten(0, (COUNT, -1)).numpy())
    before, after = seen
    assert np.array_equal(sound.valid, before)
    # a stripe through silence is no sound, nor is one that ends where the padding of a short clip begins
    whole = rows.unflatten(0, (COUNT, -1)).numpy() >= patch_size[0]
    assert np.array_equal(found[whole], (before & after)[whole])
    assert np.array_equal(sound.sounding, has_sound(log_mel, valid_frames).numpy())
    assert 0 < found.sum() < found.size
    if config.time_mask_param:
        assert found.sum() < before.sum()
