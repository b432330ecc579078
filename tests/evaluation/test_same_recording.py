"""Same-recording pairs across a split, found from the audio."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from scipy.signal import fftconvolve, lfilter
from scipy.sparse import csr_array

from raymae.audio.decode import load
from raymae.evaluation.leaks.pairs import find_pairs
from raymae.evaluation.leaks.same_recording import (
    FRONT_END,
    THRESHOLD,
    embed,
    find_siblings,
    fingerprint,
    fingerprints,
)
from tests.support.clip_tables import clip_table
from tests.support.paths import SHARED

DATA = SHARED / "data"


def write_segments(folder: Path, recordings: int) -> list[tuple[Path, int]]:
    """Two segments of each of some recordings (noise with a spectral fine structure), with random gain and tilt."""
    files = []
    for number in range(recordings):
        rng = np.random.default_rng(number)
        poles = [(rng.uniform(0.05, 0.9) * np.pi, rng.uniform(0.95, 0.995)) for _ in range(6)]
        for segment in range(2):
            rng = np.random.default_rng([number, segment])
            noise = rng.standard_normal(4 * 16_000)
            wave = sum(lfilter([1], [1, -2 * r * np.cos(w), r * r], noise) for w, r in poles)
            tilt = rng.uniform(-0.6, 0.6)
            wave = rng.uniform(0.05, 0.5) * lfilter([1, tilt], [1], wave / np.abs(wave).max())
            files.append((folder / f"{number}-{segment}.wav", number))
            sf.write(files[-1][0], wave, 16_000)
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, int]]:
    """Two segments of each of 60 recordings, with the recordings' numbers."""
    return write_segments(tmp_path_factory.mktemp("segments"), 60)


def test_other_segments_of_a_recording_are_found_despite_gain_and_tilt(files: list[tuple[Path, int]]) -> None:
    prints, read = fingerprints([str(path) for path, _ in files])
    assert read.tolist() == list(range(120))
    recording = np.array([number for _, number in files])
    trained = np.array([path.name.endswith("-0.wav") and number < 40 for path, number in files])
    asked, one_class = np.flatnonzero(~trained), csr_array(np.ones((120, 1), np.float32))
    nearest, scores = find_siblings(embed(prints), asked, np.flatnonzero(trained), one_class)
    right = recording[nearest] == recording[~trained]
    sure = scores >= THRESHOLD
    assert right[recording[~trained] < 40].mean() > 0.8
    assert right[sure].mean() > 0.75
    assert sure.sum() > 20


def test_pairs_are_counted_by_split(files: list[tuple[Path, int]], tmp_path: Path) -> None:
    rows = [
        {"path": str(path), "scene_label": "x", "split": "train" if path.name.endswith("-0.wav") else "test_a"}
        for path, _ in files[:40]
    ]
    found = find_pairs(clip_table([*rows, {"path": str(tmp_path / "none.wav"), "size": -1}]))
    assert (found["clips"], found["unread"], found["held_out"]["test_a"]["clips"]) == (40, 1, 20)
    assert found["held_out"]["test_a"]["paired_share"] > 0.5
    assert found["pairs"][0]["score"] >= found["pairs"][-1]["score"] >= found["threshold"]
    assert (found["held_out"]["test_a"]["estimate"], found["held_out"]["test_a"]["interval"]) == (None, None)
    assert "20 clips, and an estimate needs 50" in found["held_out"]["test_a"]["reason"]
    with pytest.raises(ValueError, match="nothing to compare"):
        find_pairs(clip_table(rows[::2]))


def test_silence_pairs_with_nothing_and_is_finite() -> None:
    silent = np.full((100, FRONT_END.n_mels), np.log(FRONT_END.log_offset), np.float32)
    rng = np.random.default_rng(0)
    prints = np.stack([[fingerprint(mel)] * 3 for mel in [silent, *rng.normal(size=(9, 100, FRONT_END.n_mels))]])
    embedded = embed(prints.astype(np.float32))
    assert np.isfinite(embedded).all()
    one_class = csr_array(np.ones((10, 1), np.float32))
    _, scores = find_siblings(embedded, np.arange(5), np.arange(5, 10), one_class)
    assert np.isfinite(scores).all()


@pytest.mark.skipif(not DATA.exists(), reason=f"the real recordings are not at {DATA}")
def test_precision_and_recall_on_known_recordings_through_microphones() -> None:
    """Other segments of the same upload, each through one of six microphones and with its own gain (folds 1 and 2)."""
    with open(DATA / "esc50_open/clips.csv", newline="") as file:
        clips = [row for row in csv.DictReader(file) if row["fold"] in "12"]
    responses = [load(path, 16_000) for path in sorted((DATA / "micirp").glob("*.wav"))]
    rng = np.random.default_rng(0)
    from raymae.audio.logmel import LogMel

    log_mel, prints = LogMel(FRONT_END), []
    for row in clips:
        wave = load(DATA / "esc50_open" / row["filename"], 16_000)
        wave = rng.uniform(0.1, 1) * fftconvolve(wave, responses[rng.integers(len(responses))])[: len(wave)]
        mel = log_mel(wave)
        prints.append([fingerprint(part) for part in (mel, mel[: len(mel) // 2], mel[len(mel) // 2 :])])
    upload = np.array([int(row["freesound_id"]) for row in clips])
    trained = rng.random(len(clips)) < 0.7
    label = np.unique([row["label"] for row in clips], return_inverse=True)[1]
    classes = csr_array(np.eye(label.max() + 1, dtype=np.float32)[label])
    nearest, scores = find_siblings(embed(np.array(prints)), np.flatnonzero(~trained), np.flatnonzero(trained), classes)
    mine, sure = upload[~trained], scores >= THRESHOLD
    precision = np.mean(mine[sure] == upload[nearest[sure]])
    together = np.mean(np.abs(mine[sure] - upload[nearest[sure]]) <= 100)
    recall = np.sum(mine[sure] == upload[nearest[sure]]) / np.isin(mine, upload[trained]).sum()
    print(
        f"precision {precision:.2f}, with uploads made together {together:.2f}, recall {recall:.2f}, {sure.sum()} found"
    )
    assert precision > 0.65
    assert together > 0.8
    assert recall > 0.2
