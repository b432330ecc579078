"""Models given to Python: finished ones take recordings in any form, new ones fit their weights and their input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import raymae
from raymae.api.models import LoadedClassifier, LoadedEncoder
from raymae.audio.logmel import LogMel
from raymae.config import FRONT_ENDS, AudioConfig, to_dict
from raymae.models import MODELS, AudioClassifier, MaskedAutoencoder
from raymae.models.weights_file import save_weights
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, encoded, write_tone
from tests.support.classifiers import write_tiny
from tests.support.training import TINY

RATE, CLIP = TINY_AUDIO.sample_rate, TINY_AUDIO.n_samples
NAMES = ["bus", "park"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tone.wav, 2.5 windows long; stereo.wav of 16 bit integers; broken.wav."""
    folder = tmp_path_factory.mktemp("files")
    write_tone(folder / "tone.wav", 440, seconds=2.5 * TINY_AUDIO.clip_seconds)
    soundfile.write(folder / "stereo.wav", stereo(), RATE, subtype="PCM_16")
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_tiny(Folder(str(tmp_path_factory.mktemp("classifier"))), NAMES)


@pytest.fixture(scope="module")
def classifier(folder: Folder) -> LoadedClassifier:
    found: LoadedClassifier = raymae.load_classifier(Path(folder.url), device="cpu")
    return found


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A pre-training's folder with random weights."""
    found = Folder(str(tmp_path_factory.mktemp("pretrain")))
    torch.manual_seed(3)
    found.write_bytes("model.safetensors", save_weights(MODELS["mae"](TINY_AUDIO, TINY.model)))
    card = {"format": 1, "crop_seconds": None, "audio": to_dict(TINY_AUDIO), "model": to_dict(TINY.model)}
    found.write_json("model.json", card)
    return found


def stereo() -> np.ndarray:
    """(n_samples, 2), int16."""
    return np.random.default_rng(0).integers(-9000, 9000, (CLIP, 2), np.int16)


# Recordings ----------------------------------------------------------------------------------------------------------


def test_a_log_mel_is_that_of_the_front_end(files: Path) -> None:
    samples, _ = soundfile.read(files / "tone.wav", dtype="float32")
    expected = LogMel(TINY_AUDIO)(samples)
    for recording in (files / "tone.wav", str(files / "tone.wav"), (samples, RATE), (torch.from_numpy(samples), RATE)):
        np.testing.assert_array_equal(raymae.log_mel(recording, TINY_AUDIO), expected)
    of_file = raymae.log_mel(files / "stereo.wav", TINY_AUDIO)
    for array in (stereo(), stereo().T):
        np.testing.assert_array_equal(raymae.log_mel((array, RATE), TINY_AUDIO), of_file)
    resampled = raymae.log_mel(files / "tone.wav", front_end="audiomae")
    assert resampled.shape == (FRONT_ENDS["audiomae"].frames(2 * len(samples)), 128)
    changed = raymae.log_mel(files / "tone.wav", {"n_mels": 64})
    assert changed.shape == (AudioConfig().frames(4 * len(samples)), 64)


@pytest.mark.parametrize(
    ("recording", "front_end", "message"),
    [
        ("gone.wav", "paper", "^gone.wav: No such file"),
        (np.zeros(100), "paper", "a waveform without its sample rate; expected the path"),
        ((np.zeros((3, 4, 5)), RATE), "paper", r"a waveform of shape \(3, 4, 5\); valid: \(n_samples,\), "),
        ((np.zeros((90, 90)), RATE), "paper", r"a waveform of shape \(90, 90\): one axis has to be channels"),
        ("gone.wav", "papr", r"unknown front end 'papr' \(did you mean paper\?\); valid: paper, audiomae"),
        ("gone.wav", {"n_mel": 64}, r"unknown setting n_mel \(did you mean n_mels\?\)"),
        ("gone.wav", {"n_mels": "many"}, "n_mels = 'many': input should be a valid integer"),
    ],
)
def test_what_has_no_log_mel_is_refused(recording: Any, front_end: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        raymae.log_mel(recording, front_end)


def test_recordings_of_any_form_have_the_predictor_s_probabilities(classifier: LoadedClassifier, files: Path) -> None:
    wave, tone = encoded(), files / "tone.wav"
    given = [tone, str(files / "broken.wav"), wave, (stereo(), RATE), {"waveform": stereo().T, "sample_rate": RATE}]
    found = classifier.predict(given)
    frame = found.to_frame()
    assert list(frame) == ["path", "scene_label", "confidence", "error", "p_bus", "p_park"]
    assert frame["path"].tolist()[:2] == [str(tone), str(files / "broken.wav")]
    assert frame["path"].isna().tolist() == [False, False, True, True, True]
    assert frame["error"].notna().tolist() == [False, True, False, False, False]
    expected = [list(classifier.predictor(one).values()) for one in (tone, wave, files / "stereo.wav")]
    np.testing.assert_allclose(found.probabilities[[0, 2, 3]], expected, atol=1e-6)
    np.testing.assert_array_equal(found.probabilities[3], found.probabilities[4])
    assert np.isnan(found.probabilities[1]).all()
    assert found.labels[1] is None
    assert [found.labels[row] for row in (0, 2, 3)] == [NAMES[best] for best in np.argmax(expected, axis=1)]
    for one in (tone, wave, (stereo(), RATE)):  # a single one is no list
        assert len(classifier.predict(one).labels) == 1
    assert classifier.predict(pd.Series([(stereo(), RATE)])).labels == found.labels[3:4]


@pytest.mark.parametrize("given", [np.zeros(100), torch.zeros(100), [np.zeros(100), RATE], np.zeros((2, 100))])
def test_a_waveform_without_its_rate_is_refused(classifier: LoadedClassifier, given: Any) -> None:
    with pytest.raises(ValueError, match="row 0 holds a waveform without its sample rate; expected the path of"):
        classifier.predict(given)


def test_windows_have_rows_of_their_own(classifier: LoadedClassifier, files: Path) -> None:
    found = classifier.predict(files / "tone.wav", level="window")
    assert found.to_frame()["start_seconds"].tolist() == pytest.approx([0, 0.64, 1.28])
    expected = [values for _, _, values in classifier.predictor.windows(files / "tone.wav")]
    np.testing.assert_array_equal(found.probabilities, expected)
    with pytest.raises(ValueError, match="level = 'windows' must be one of file, window"):
        classifier.predict(files / "tone.wav", level="windows")


@pytest.mark.parametrize("pool", ["row_stats", "mean", "cls"])
def test_embeddings_are_the_mean_over_windows_by_their_length(pretrained: Folder, files: Path, pool: Any) -> None:
    encoder: LoadedEncoder = raymae.load_encoder(pretrained.url, device="cpu")
    given = [files / "tone.wav", files / "broken.wav", (np.zeros(CLIP), RATE), (stereo(), RATE)]
    found = encoder.embed(given, pool=pool)
    assert found.rows["error"].tolist()[1:3] == [found.rows["error"][1], "silent"]
    assert np.isnan(found.vectors).all(1).tolist() == [False, True, True, False]
    windows = encoder.embed(given[0], level="window", pool=pool)
    assert list(windows.to_frame()) == ["path", "start_seconds", "end_seconds", "error", "embedding"]
    weights = windows.rows["end_seconds"] - windows.rows["start_seconds"]
    np.testing.assert_allclose(np.average(windows.vectors, axis=0, weights=weights), found.vectors[0], atol=1e-5)
    own = LogMel(TINY_AUDIO)(soundfile.read(files / "tone.wav", dtype="float32")[0][:CLIP])[None]
    (alone,) = encoder.embedder.clips(own, np.array([own.shape[1]]), pool)
    np.testing.assert_allclose(alone, windows.vectors[0], atol=1e-5)
    assert np.ptp(found.vectors[[0, 3]], axis=0).max() > 1e-3


# New models ----------------------------------------------------------------------------------------------------------


def test_a_new_model_starts_from_weights(pretrained: Folder) -> None:
    given = raymae.load_encoder(pretrained.url, device="cpu").module.state_dict()
    whole = raymae.create_model(pretrained=pretrained.url)
    assert isinstance(whole, MaskedAutoencoder)
    assert whole.config == TINY.model
    classifier = raymae.create_model(pretrained=Path(pretrained.url), num_classes=7, finetune={"pool": "cls"})
    assert isinstance(classifier, AudioClassifier)
    assert classifier.head.out_features == 7
    for model in (whole, classifier):
        for name, value in model.encoder.state_dict().items():
            torch.testing.assert_close(value, given[name], rtol=0, atol=0)


def test_sizes_and_settings_build_a_model() -> None:
    with torch.device("meta"):
        model = raymae.create_model("base", front_end="audiomae", model={"decoder": "global", "decoder_depth": 8})
    assert len(model.encoder.blocks) == 12
    assert model.encoder.cls_token.shape == (1, 1, 768)
    assert (model.encoder.n_mels, model.config.decoder_depth) == (128, 8)
    with pytest.raises(ValueError, match=r"shape \(1, 640, 64\); this model takes \(B, T, 128\)"):
        model.patchify(torch.zeros(1, 640, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "bse"}, r"unknown size 'bse' \(did you mean base\?\); valid: tiny, small, base"),
        ({}, "create_model needs a size"),
        ({"size": "tiny", "model": {"depht": 3}}, r"unknown setting model\.depht \(did you mean model\.depth\?\)"),
        ({"size": "tiny", "finetune": {"pool": "cls"}}, "finetune has no effect without num_classes"),
    ],
)
def test_a_model_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        raymae.create_model(**arguments)


def test_weights_of_another_size_are_refused(pretrained: Folder) -> None:
    with pytest.raises(ValueError, match=r"pretrain\.init_from .*: .*expected"):
        raymae.create_model("tiny", pretrained=pretrained.url)
