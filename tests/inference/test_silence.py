"""Muted recordings and windows have an answer, in every pooling, and change nobody else's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from raymae.audio.errors import SilentError
from raymae.audio.logmel import LogMel, fit_length, is_silent
from raymae.config import FinetuneConfig
from raymae.inference.embedder import Pool, make_embedder
from raymae.inference.labeller import FAILED, FILES, Labeller
from raymae.inference.predictor import Predictor
from raymae.models import AudioClassifier, Encoder, build_classifier
from raymae.models.masking import every
from raymae.models.patches import has_sound
from raymae.storage.folder import Folder
from raymae.training.tasks.inputs import Frames, find_sound
from tests.support.audio_files import TINY_AUDIO
from tests.support.classifiers import write_tiny
from tests.support.training import TINY

RATE, CLIP = TINY_AUDIO.sample_rate, TINY_AUDIO.n_samples
SETTINGS: dict[str, dict[str, Any]] = {
    "mean": {"pool": "mean"},
    "cls": {"pool": "cls"},
    "row_stats": {"pool": "row_stats"},
    "segments": {"pool": "row_stats", "segment_seconds": 0.16},
    "band mean": {"pool": "row_stats", "subtract_band_mean": True},
    "band mean and raw": {"pool": "mean", "subtract_band_mean": True, "with_raw": True},
}


def noise(windows: int, seed: int = 0) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal(windows * CLIP)).astype(np.float32)


def silence(windows: int) -> NDArray[np.float32]:
    return np.zeros(windows * CLIP, np.float32)


@pytest.fixture(params=SETTINGS.values(), ids=SETTINGS.keys())
def finetune(request: pytest.FixtureRequest) -> FinetuneConfig:
    return replace(TINY.finetune, **request.param)


@pytest.fixture
def predictor(tmp_path: Path, finetune: FinetuneConfig) -> Predictor:
    return Predictor(write_tiny(Folder(str(tmp_path / "classifier")), ["bus", "park"], finetune), threads=1)


def test_a_muted_recording_is_an_error_and_its_neighbours_keep_their_answers(predictor: Predictor) -> None:
    sounding = [(noise(1, seed), RATE) for seed in range(3)]
    expected = list(predictor.rows(sounding))
    muted: list[Any] = [(silence(1), RATE), sounding[0], (silence(20), RATE), *sounding[1:]]
    found = list(predictor.rows(muted))
    assert [row["error"] for row in found] == ["silent", None, "silent", None, None]
    for one, other in zip([found[1], *found[3:]], expected, strict=True):
        assert one["scene_label"] == other["scene_label"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-6)
    with pytest.raises(SilentError):
        predictor(muted[0])


def test_silent_windows_say_so_and_do_not_count(predictor: Predictor) -> None:
    first, second = noise(1), noise(1, 1)
    windows = predictor.windows((np.concatenate([first, silence(3), second]), RATE))
    assert [value is None for _, _, value in windows] == [False, True, True, True, False]
    alone = predictor.windows((np.concatenate([first, second]), RATE))
    np.testing.assert_allclose(predictor.average(windows), predictor.average(alone), atol=1e-6)


def test_a_batch_of_silence_is_computed(finetune: FinetuneConfig) -> None:
    model = build_classifier(TINY_AUDIO, TINY.model, finetune, 2)
    assert isinstance(model, AudioClassifier)
    log_mel, frames = fit_length(LogMel(TINY_AUDIO)(silence(1)), TINY_AUDIO.n_frames, TINY_AUDIO.silence)
    batch, valid = torch.from_numpy(np.stack([log_mel] * 2)), torch.tensor([frames, frames // 2])
    for training in (True, False):
        assert model.train(training)(batch, valid).isfinite().all()
    patches, frames_of_rows = model.patchify(batch, valid)
    sounding = model.encoder.valid(patches, frames_of_rows)
    assert not sounding.any()
    kept = every(sounding, *sounding.shape, sounding.device)
    assert model(batch, valid, kept).isfinite().all()


@pytest.mark.parametrize("pool", ["mean", "cls", "row_stats"])
def test_a_silent_clip_is_embedded(pool: Pool) -> None:
    embedder = make_embedder(Encoder(TINY_AUDIO, TINY.model).eval(), TINY_AUDIO, TINY.model, TINY_AUDIO.n_frames)
    log_mel = np.full((2, TINY_AUDIO.n_frames, TINY_AUDIO.n_mels), TINY_AUDIO.silence, np.float32)
    assert np.isfinite(embedder.clips(log_mel, np.array([TINY_AUDIO.n_frames, 3]), pool)).all()


@pytest.mark.parametrize("level", ["file", "window"])
def test_tables_name_silent_rows(tmp_path: Path, level: Any) -> None:
    predictor = Predictor(write_tiny(Folder(str(tmp_path / "classifier")), ["bus", "park"]), threads=1)
    waves = {"muted": silence(2), "dropout": np.concatenate([noise(1), silence(1)])}
    for name, wave in waves.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, RATE)
    table = Labeller(predictor, level, 1)([str(tmp_path / f"{name}.wav") for name in waves])
    expected = {"file": ["silent", None], "window": ["silent", None, "silent"]}
    assert table["error"].to_pylist() == expected[level]
    assert (table["scene_label"].is_null().to_pylist()) == [error is not None for error in expected[level]]
    assert {name: int(table.schema.metadata[name]) for name in (FILES, FAILED)} == {FILES: 2, FAILED: 1}
    if level == "window":
        assert table["start_seconds"].to_pylist() == [None, 0, pytest.approx(CLIP / RATE)]


def test_silence_is_the_same_for_front_end_and_models() -> None:
    front = LogMel(TINY_AUDIO)
    quiet = 1e-4 * noise(1)
    constant = np.full(CLIP, 0.25, np.float32)
    for wave in (noise(1), quiet, silence(1), constant, noise(1)[: CLIP // 3], silence(1)[:40], noise(1)[:40]):
        log_mel, frames = fit_length(front(wave), TINY_AUDIO.n_frames, TINY_AUDIO.silence)
        batch, valid = torch.from_numpy(log_mel[None]), torch.tensor([frames])
        encoder = Encoder(TINY_AUDIO, TINY.model)
        patches = encoder.valid(encoder.patchify(batch), valid)
        assert is_silent(log_mel, frames) == (not has_sound(batch, valid).item()) == (not patches.any())
        stored = Frames(batch.half(), np.array([frames]), None)
        sound = find_sound(stored, TINY.model.patch_size, TINY_AUDIO.silence)
        assert np.array_equal(sound.valid[:, 0], patches.numpy())
        assert sound.sounding[0] == has_sound(batch, valid).item()
