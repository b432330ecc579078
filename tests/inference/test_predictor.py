"""Classifier folders: their content, errors, and predictions for recordings given in any form."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors

from raymae.audio.errors import AudioError
from raymae.audio.logmel import LogMel, fit_length
from raymae.config import AugmentConfig, from_dict
from raymae.inference.classifier import FORMAT, class_probabilities, read_classifier, views, write_classifier
from raymae.inference.predictor import Predictor
from raymae.models import build_classifier
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, write_tone
from tests.support.training import TINY

RATE, CLIP = TINY_AUDIO.sample_rate, TINY_AUDIO.n_samples
NAMES = ["airport", "bus", "park"]
GONE = object()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A classifier whose head gives different results for different recordings."""
    torch.manual_seed(0)
    model = build_classifier(TINY_AUDIO, TINY.model, TINY.finetune, len(NAMES))
    torch.nn.init.normal_(model.head.weight, std=1.0)
    target = Folder(str(tmp_path_factory.mktemp("classifier")))
    write_classifier(
        target, model, class_names=NAMES, audio=TINY_AUDIO, model_config=TINY.model, finetune=TINY.finetune
    )
    return target


@pytest.fixture(scope="module")
def predictor(folder: Folder) -> Predictor:
    return Predictor(folder, threads=1)


def noise(n_samples: int, seed: int = 0) -> NDArray[np.float32]:
    """Noise with less and less treble, so that its windows differ."""
    wave = np.random.default_rng(seed).normal(size=n_samples + 1)
    share = np.linspace(0, 1, n_samples)
    return np.asarray(0.1 * (wave[1:] + share * wave[:-1]), np.float32)


def changed(folder: Folder, target: Path, **changes: Any) -> Folder:
    """A copy of the folder whose classifier.json has other entries; GONE removes one."""
    card = folder.read_json("classifier.json") | changes
    copy = Folder(str(target))
    copy.write_bytes("model.safetensors", folder.read_bytes("model.safetensors"))
    copy.write_json("classifier.json", {key: value for key, value in card.items() if value is not GONE})
    return copy


# The folder ----------------------------------------------------------------------------------------------------------


def test_the_folder_holds_everything_as_json_and_safetensors(folder: Folder) -> None:
    assert folder.names() == ["classifier.json", "model.safetensors"]
    card = json.loads(folder.read_bytes("classifier.json"))
    assert card["format"] == FORMAT
    assert card["class_names"] == NAMES
    assert from_dict(type(TINY_AUDIO), card["audio"]) == TINY_AUDIO
    assert from_dict(type(TINY.model), card["model"]) == TINY.model
    assert from_dict(type(TINY.finetune), card["finetune"]) == TINY.finetune
    weights = load_tensors(folder.read_bytes("model.safetensors"))
    model = read_classifier(folder).model
    assert not model.training
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(weights[name], value.numpy())


def test_a_pickle_in_the_place_of_the_weights_is_not_run(folder: Folder, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    copy = changed(folder, tmp_path / "copy")
    for content in (pickle.dumps(Trap()), torch_pickle(Trap())):
        copy.write_bytes("model.safetensors", content)
        with pytest.raises(ValueError, match=r"copy/model\.safetensors doesn't fit"):
            Predictor(copy)
    assert not (tmp_path / "sprung").exists()


def torch_pickle(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": FORMAT + 1},
            f"classifier.json is of format {FORMAT + 1}; this version of raymae reads format {FORMAT}",
        ),
        ({"format": GONE}, "is of format None; this version"),
        ({"audio": GONE}, "damaged: KeyError: 'audio'"),
        ({"audio": {"sample_rat": 8000}}, "unknown setting sample_rat .*; valid here: sample_rate"),
        ({"audio": {"sample_rate": -1}}, r"audio\.sample_rate = -1"),
        ({"audio": 7}, "damaged: TypeError"),
        ({"cnn": "no_such_network"}, "damaged: .*no_such_network"),
        ({"class_names": [*NAMES, "tram"]}, "doesn't fit .*size mismatch"),
        ({"model": {"embed_dim": 16, "num_heads": 2, "patch_size": [8, 8]}}, "doesn't fit"),
    ],
)
def test_an_error_names_a_folder_that_does_not_fit(
    folder: Folder, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    copy = changed(folder, tmp_path / "copy", **changes)
    with pytest.raises(ValueError, match=message) as error:
        Predictor(copy)
    text = str(error.value)
    assert text.startswith(copy.url)
    assert "\n" not in text
    assert len(text) < 500


def test_an_incomplete_folder_is_not_a_classifier(folder: Folder, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path / "copy")
    copy.remove("model.safetensors")
    for wrong, missing in ((copy.url, "model.safetensors"), (str(tmp_path / "nowhere"), "classifier.json")):
        with pytest.raises(ValueError, match=f"{wrong} is not a classifier: it has no {missing}"):
            Predictor(wrong)
    copy = changed(folder, tmp_path / "copy")
    for content in (b"{", b"\xff\xfe", b"[1, 2]", b'"text"'):
        copy.write_bytes("classifier.json", content)
        with pytest.raises(ValueError, match=f"{copy.url}/classifier.json"):
            Predictor(copy)


# Recordings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [CLIP // 3, CLIP, 3 * CLIP + 1000])
def test_path_bytes_and_waveform_agree(predictor: Predictor, tmp_path: Path, n_samples: int) -> None:
    wave = noise(n_samples)
    path = tmp_path / "a.wav"
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    expected = predictor.windows((wave, RATE))
    for source in (path, str(path), path.read_bytes(), (wave.astype(np.float64), RATE)):
        for found, wanted in zip(predictor.windows(source), expected, strict=True):
            assert found[:2] == wanted[:2]
            np.testing.assert_array_equal(found[2], wanted[2])
    assert predictor(path) == predictor((wave, RATE))


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_integer_waveforms_have_the_scale_of_integer_files(predictor: Predictor, dtype: str) -> None:
    whole = (noise(CLIP) * np.iinfo(dtype).max).astype(dtype)
    expected = predictor((whole / -float(np.iinfo(dtype).min), RATE))
    assert predictor((whole, RATE)) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(n_samples=st.integers(1, 6 * CLIP))
def test_windows_tile_a_recording_of_any_length(predictor: Predictor, n_samples: int) -> None:
    windows = predictor.windows((noise(n_samples), RATE))
    starts, ends = (np.array([window[side] for window in windows]) * RATE for side in (0, 1))
    assert starts[0] == 0
    np.testing.assert_allclose(starts[1:], ends[:-1])
    np.testing.assert_allclose((ends - starts)[:-1], CLIP)
    assert n_samples - TINY_AUDIO.n_fft < ends[-1] <= n_samples + 1e-6
    for _, _, probabilities in windows:
        assert probabilities.shape == (len(NAMES),)
        assert probabilities.min() >= 0
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_a_window_is_the_front_end_and_the_model(predictor: Predictor) -> None:
    wave = noise(20 * CLIP, seed=1)  # more windows than a batch
    one = predictor.classifier
    found = predictor.windows((wave, RATE))
    assert len(found) == 20
    for number in (0, 15, 16, 19):
        part = wave[number * CLIP : (number + 1) * CLIP]
        log_mel, frames = fit_length(LogMel(TINY_AUDIO)(part), TINY_AUDIO.n_frames, TINY_AUDIO.silence)
        with torch.inference_mode():
            expected = one.model(torch.from_numpy(log_mel)[None], torch.tensor([frames])).softmax(1)[0]
        np.testing.assert_allclose(found[number][2], expected.numpy(), atol=1e-5)
    mean = np.mean([values for _, _, values in found], axis=0)
    assert list(predictor((wave, RATE)).values()) == pytest.approx(mean.tolist(), abs=1e-5)
    assert np.ptp([values for _, _, values in found], axis=0).max() > 0.01


def test_a_short_last_window_counts_by_its_length(predictor: Predictor) -> None:
    wave = noise(CLIP + CLIP // 4)
    (_, _, whole), (start, end, rest) = predictor.windows((wave, RATE))
    assert (end - start) * RATE == pytest.approx(CLIP // 4)
    found = predictor((wave, RATE))
    assert list(found) == NAMES
    assert list(found.values()) == pytest.approx((0.8 * whole + 0.2 * rest).tolist(), abs=1e-6)


@pytest.mark.parametrize("rate", [11_025, 16_000, 48_000])
def test_other_sample_rates(predictor: Predictor, tmp_path: Path, rate: int) -> None:
    write_tone(tmp_path / "own.wav", 440, rate=RATE)
    write_tone(tmp_path / "other.wav", 440, rate=rate)
    wave, _ = soundfile.read(tmp_path / "other.wav", dtype="float32")
    assert predictor((wave, rate)) == predictor(tmp_path / "other.wav")
    (_, end, _), *_ = predictor.windows((wave, rate))
    assert end == pytest.approx(TINY_AUDIO.clip_seconds, abs=1e-3)


@pytest.mark.parametrize("kind", ["float32", "int16"])
def test_stereo_arrays_are_as_their_file(predictor: Predictor, tmp_path: Path, kind: str) -> None:
    stereo = np.stack([noise(CLIP), noise(CLIP, seed=1)[::-1]], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, RATE, subtype="FLOAT" if kind == "float32" else "PCM_16")
    wave, _ = soundfile.read(tmp_path / "stereo.wav", dtype=kind)
    expected = predictor(tmp_path / "stereo.wav")
    assert predictor((wave, RATE)) == predictor((wave.T, RATE)) == expected
    assert predictor((wave[:, 0], RATE)) != expected


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (np.array([0.1, np.nan], np.float32), RATE, "finite"),
        (np.array([0.1, np.inf], np.float32), RATE, "finite"),
        (
            np.zeros((20, 30), np.float32),
            RATE,
            r"shape \(20, 30\): one axis has to be channels, at most 64, one samples",
        ),
        (np.zeros((100, 100), np.float32), RATE, r"shape \(100, 100\): one axis has to be channels"),
        (
            np.zeros((1, 2, 100), np.float32),
            RATE,
            r"shape \(1, 2, 100\); valid: \(n_samples,\), \(n_samples, channels\)",
        ),
        (np.zeros((2, 0), np.float32), RATE, r"shape \(2, 0\); valid"),
        (np.zeros(0, np.float32), RATE, "not empty"),
        (np.float32(0.5), RATE, r"shape \(\); valid"),
        (np.zeros(100, np.uint8), RATE, "a waveform of uint8; valid: float16"),
        (np.zeros(100, np.complex64), RATE, "a waveform of complex64"),
        (np.zeros(100, np.float32), 0, "0 Hz is not a valid sample rate"),
        (np.zeros(100, np.float32), -8000, "sample rate"),
        (np.zeros(1, np.float32), 192_000, "too short"),
    ],
)
def test_an_invalid_waveform_is_an_error(predictor: Predictor, waveform: Any, rate: int, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        predictor((waveform, rate))


def test_rows_of_a_result_table(predictor: Predictor, tmp_path: Path) -> None:
    write_tone(tmp_path / "good.wav", 440)
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    good = predictor.row(str(tmp_path / "good.wav"))
    probabilities = [f"p_{name}" for name in NAMES]
    assert list(good) == ["path", "scene_label", "confidence", "error", *probabilities]
    assert good["error"] is None
    assert good["confidence"] == good[f"p_{good['scene_label']}"] == max(good[name] for name in probabilities)
    for name, reason in (("bad.wav", "can't be decoded"), ("missing.wav", "No such file"), (".", "not a regular file")):
        row = predictor.row(str(tmp_path / name))
        assert row.pop("path") == str(tmp_path / name)
        assert row.pop("error").startswith(reason)
        assert row == dict.fromkeys(["scene_label", "confidence", *probabilities])


# Crops ---------------------------------------------------------------------------------------------------------------


@given(frames=st.integers(1, 200), crop=st.integers(1, 200), valid=st.integers(1, 200), count=st.integers(1, 5))
def test_views_are_within_the_valid_frames(frames: int, crop: int, valid: int, count: int) -> None:
    starts = views(frames, crop, torch.tensor([valid, frames]), count).numpy()
    assert starts.shape == (count, 2)
    assert (starts >= 0).all()
    assert (starts + crop <= np.maximum(crop, np.minimum([valid, frames], frames))).all()
    if count > 1:
        assert (starts[0] == 0).all()
        assert starts[-1, 1] == max(frames - crop, 0)


def test_views_are_averaged(predictor: Predictor) -> None:
    one = predictor.classifier
    finetune = replace(one.finetune, views=3, augment=AugmentConfig(crop_seconds=0.32))
    log_mel = np.random.default_rng(0).normal(size=(2, TINY_AUDIO.n_frames, TINY_AUDIO.n_mels)).astype(np.float32)
    frames = np.array([TINY_AUDIO.n_frames, 20], np.int32)
    cpu = torch.device("cpu")
    found = class_probabilities(one.model, log_mel, frames, finetune, TINY_AUDIO, cpu)
    assert found.sum(1) == pytest.approx([1, 1], abs=1e-5)
    crop = TINY_AUDIO.frames(round(0.32 * RATE))
    with torch.inference_mode():
        starts = views(65, crop, torch.tensor(frames[:1]), 3)[:, 0]
        parts = [torch.from_numpy(log_mel[:1, start : start + crop]) for start in starts]
        expected = torch.stack([one.model(part).softmax(1) for part in parts]).mean(0)
    np.testing.assert_allclose(found[:1], expected.numpy(), atol=1e-5)
