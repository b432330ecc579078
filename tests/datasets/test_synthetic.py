"""The synthetic data set: reproducible, like field recordings, and without shortcuts to the labels."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from scipy.signal import spectrogram
from sklearn.model_selection import GroupKFold, KFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from raymae.config import SyntheticConfig
from raymae.datasets import synthetic
from raymae.datasets.synthetic.scenes import CITIES, DEVICES, SCENES, UNSEEN_CITY, UNSEEN_DEVICE

CONFIG = SyntheticConfig(clips=200, pool_clips=20, seed=3)
TINY = SyntheticConfig(clips=100, pool_clips=0)
N_BANDS = 16


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def band_levels(path: Path) -> NDArray[np.float64]:
    """Decibels (N_BANDS, n_frames) of equal bands from 0 Hz to half the file's rate."""
    wave, rate = soundfile.read(path, dtype="float32")
    _, _, power = spectrogram(wave, rate, nperseg=512, noverlap=0, detrend=False)
    return np.asarray(10 * np.log10(power[1:].reshape(N_BANDS, -1, power.shape[1]).mean(1)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("synthetic"), CONFIG).parent


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, str]]:
    return read(folder / "metadata.csv")


@pytest.fixture(scope="module")
def levels(folder: Path, rows: list[dict[str, str]]) -> list[NDArray[np.float64]]:
    return [band_levels(folder / row["filename"]) for row in rows]


@pytest.fixture(scope="module")
def scene(folder: Path, rows: list[dict[str, str]]) -> NDArray[np.str_]:
    """The true scene of every row; empty in the pool."""
    truth = {row["filename"]: row["scene_label"] for row in read(folder / "truth.csv")}
    return np.array([row["scene_label"] or truth.get(row["filename"], "") for row in rows])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("tiny"), TINY).parent


def test_another_seed_gives_other_bytes(tiny: Path, tmp_path: Path) -> None:
    first = files(tiny)
    other = files(synthetic.write(tmp_path, SyntheticConfig(clips=100, pool_clips=0, seed=1)).parent)
    audio = {content for name, content in first.items() if name.startswith("audio/")}
    assert len(audio) == 100
    assert not audio & set(other.values())


def test_table(folder: Path, rows: list[dict[str, str]]) -> None:
    assert tuple(rows[0]) == ("filename", "scene_label", "city", "device", "group", "split")
    assert {row["filename"] for row in rows} == {f"audio/{path.name}" for path in (folder / "audio").iterdir()}
    splits = Counter(row["split"] for row in rows)
    assert splits == {"train": 110, "val": 18, "test_seen": 36, "test_unseen": 36, "pool": 20}


def test_sessions_stay_together(rows: list[dict[str, str]]) -> None:
    clips: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        clips.setdefault(row["group"], []).append(row)
    for members in clips.values():
        assert len({(row["split"], row["city"], row["device"], row["scene_label"]) for row in members}) == 1
    assert np.mean([len(members) for members in clips.values()]) > 2


def test_one_city_and_one_device_occur_in_test_unseen_only(rows: list[dict[str, str]]) -> None:
    places = {row["split"]: set() for row in rows}
    for row in rows:
        places[row["split"]].add((row["city"], row["device"]))
    known = {(city, device) for city in CITIES for device in DEVICES}
    assert places["train"] | places["val"] | places["test_seen"] <= known
    assert places["test_unseen"] == {(UNSEEN_CITY, UNSEEN_DEVICE)}
    assert not {city for city, _ in places["pool"]} & {*CITIES, UNSEEN_CITY}
    assert not {device for _, device in places["pool"]} & {*DEVICES, UNSEEN_DEVICE}


def test_labels(folder: Path, rows: list[dict[str, str]]) -> None:
    by_split = {
        split: [row for row in rows if row["split"] == split] for split in ("train", "val", "test_seen", "pool")
    }
    train = by_split["train"]
    labelled = [row for row in train if row["scene_label"]]
    share = len({row["group"] for row in labelled}) / len({row["group"] for row in train})
    assert 0.12 < share < 0.28
    assert {row["scene_label"] for row in labelled} == set(SCENES)
    assert all(row["scene_label"] for row in by_split["val"] + by_split["test_seen"])
    assert not any(row["scene_label"] for row in by_split["pool"])
    hidden = {row["filename"] for row in train if not row["scene_label"]}
    assert {row["filename"] for row in read(folder / "truth.csv")} == hidden


def test_a_random_split_leaks_and_a_split_by_groups_does_not(
    rows: list[dict[str, str]], scene: NDArray[np.str_], levels: list[NDArray[np.float64]]
) -> None:
    known = scene != ""
    statistics = np.array([[*level.mean(1), *level.std(1)] for level in levels])[known]
    groups = np.array([row["group"] for row in rows])[known]
    nearest = make_pipeline(StandardScaler(), KNeighborsClassifier(1))
    leaking = cross_val_score(nearest, statistics, scene[known], cv=KFold(5, shuffle=True, random_state=0)).mean()
    honest = cross_val_score(nearest, statistics, scene[known], groups=groups, cv=GroupKFold(5)).mean()
    assert leaking > honest + 0.1
    assert honest > 0.3


def test_no_band_is_silent_or_constant(levels: list[NDArray[np.float64]]) -> None:
    for level in levels:
        assert level.std(1).min() > 0.5
        assert level.mean(1).min() > -110  # 16 bits end at -98 dB full scale, -138 dB per Hz at 16 kHz


def test_levels_are_sensible(folder: Path, rows: list[dict[str, str]]) -> None:
    for row in rows:
        wave, rate = soundfile.read(folder / row["filename"])
        assert wave.ndim == 1
        assert 1.99 <= len(wave) / rate <= 3.61
        assert -36 < 20 * np.log10(np.sqrt(np.mean(wave**2))) < -16
        assert np.abs(wave).max() <= 0.96


def test_files_come_in_several_formats(folder: Path, rows: list[dict[str, str]]) -> None:
    kinds = {(info.samplerate, info.format) for info in (soundfile.info(folder / row["filename"]) for row in rows)}
    assert {(16_000, "WAV"), (16_000, "FLAC"), (22_050, "FLAC")} < kinds
    assert len(kinds) > 4


def test_order_and_names_are_independent_of_the_scene(rows: list[dict[str, str]], scene: NDArray[np.str_]) -> None:
    known = scene != ""
    number = np.array([int(Path(row["filename"]).stem) for row in rows])[known]
    group = np.array([int(row["group"][1:]) for row in rows])[known]
    assert (np.diff(number) > 0).all()
    folds = GroupKFold(5)
    for cue in (number, group):
        found = cross_val_score(KNeighborsClassifier(1), cue[:, None], scene[known], groups=group, cv=folds).mean()
        assert found < 0.2


def test_a_finished_folder_is_left_unchanged(tiny: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.parent.rglob("*")}
    assert synthetic.write(tiny.parent, TINY) == tiny / "metadata.csv"
    assert {path: path.stat().st_mtime_ns for path in tiny.parent.rglob("*")} == before


def test_a_partly_written_folder_is_rewritten_and_a_seed_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    half = tmp_path / tiny.name
    (half / "audio").mkdir(parents=True)
    (half / "audio" / "left over.wav").write_bytes(b"RIFF")
    (half / "metadata.csv").write_text("filename\n")
    assert synthetic.write(tmp_path, TINY) == half / "metadata.csv"
    assert files(half) == files(tiny)
    assert list(tmp_path.iterdir()) == [half]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(soundfile, "write", full_disk)
    with pytest.raises(OSError, match="no space"):
        synthetic.write(tmp_path, TINY)
    assert not list(tmp_path.iterdir())
