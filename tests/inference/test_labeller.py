"""Label tables: every file once and in its order, for any batching and number of threads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymae.audio.errors import AudioError, UnreachableError
from raymae.inference.labeller import FAILED, FILES, UNREACHABLE, Labeller, schema
from raymae.inference.predictor import Predictor
from raymae.inference.windowed import BATCH
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, write_tone
from tests.support.classifiers import write_tiny
from tests.support.training import TINY

NAMES = ["path", "error", "scene_label"]
"""Classes with the names of other columns."""
P = [f"p_{name}" for name in NAMES]
CLIP = TINY_AUDIO.clip_seconds
LENGTHS = [CLIP, CLIP / 3, 2.5 * CLIP, (BATCH + 2) * CLIP, CLIP, CLIP, 5 * CLIP, CLIP / 2]
"""Lengths of recordings in seconds, one of them longer than the windows of a forward pass."""


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(write_tiny(Folder(str(tmp_path_factory.mktemp("classifier"))), NAMES), threads=1)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Recordings of several lengths, with broken, missing and repeated ones between them."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, seconds in enumerate(LENGTHS):
        write_tone(folder / f"{number}.wav", 200 + 150 * number, seconds=seconds, seed=number)
    (folder / "broken.wav").write_bytes(b"RIFF")
    names = ["0.wav", "broken.wav", "1.wav", "2.wav", "3.wav", "gone.wav", *(f"{n}.wav" for n in range(4, 8)), "0.wav"]
    return [str(folder / name) for name in names]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_per_file_equals_the_predictor_s(predictor: Predictor, paths: list[str], threads: int) -> None:
    table = Labeller(predictor, "file", threads)(paths)
    assert table.schema.equals(schema(NAMES, "file"))
    assert table["path"].to_pylist() == paths
    for row, path in zip(table.to_pylist(), paths, strict=True):
        alone = predictor.row(path)
        assert [row[name] for name in ("scene_label", "error")] == [alone["scene_label"], alone["error"]]
        if row["error"]:
            assert row["confidence"] is None
            assert all(row[name] is None for name in P)
        else:
            assert [row[name] for name in P] == pytest.approx([alone[name] for name in P], abs=1e-5)
            assert row["confidence"] == pytest.approx(alone["confidence"], abs=1e-5)
    counts = {name: int(table.schema.metadata[name]) for name in (FILES, FAILED, UNREACHABLE)}
    assert counts == {FILES: len(paths), FAILED: 2, UNREACHABLE: 0}


def test_a_row_per_window_equals_the_predictor_s(predictor: Predictor, paths: list[str]) -> None:
    table = Labeller(predictor, "window", 2)(paths)
    assert table.schema.equals(schema(NAMES, "window"))
    rows = iter(table.to_pylist())
    for path in paths:
        try:
            windows: Any = predictor.windows(path)
        except AudioError as error:
            windows = [(None, None, error)]
        for start, end, values in windows:
            row = next(rows)
            assert (row["path"], row["start_seconds"], row["end_seconds"]) == (path, start, end)
            if start is None:
                assert row["error"] == str(values)
                continue
            assert [row[name] for name in P] == pytest.approx(values.tolist(), abs=1e-5)
            assert (row["scene_label"], row["error"]) == (NAMES[int(np.argmax(values))], None)
    assert next(rows, None) is None
    assert int(table.schema.metadata[FILES]) == len(paths)


def test_the_batch_that_a_recording_is_in_does_not_matter(predictor: Predictor, paths: list[str]) -> None:
    good = [path for path in paths if not path.endswith(("broken.wav", "gone.wav"))]
    together = list(predictor.each(good))
    assert len(together) == len(good)
    for path, windows in zip(good, together, strict=True):
        alone = predictor.windows(path)
        assert not isinstance(windows, AudioError)
        assert [window[:2] for window in windows] == [window[:2] for window in alone]
        np.testing.assert_allclose([w[2] for w in windows], [w[2] for w in alone], atol=1e-5)


def test_forward_passes_span_several_recordings(predictor: Predictor, paths: list[str]) -> None:
    sizes: list[int] = []

    class Counting(Predictor):
        def probabilities(self, log_mel: Any, valid_frames: Any) -> Any:
            sizes.append(len(log_mel))
            return super().probabilities(log_mel, valid_frames)

    counting = object.__new__(Counting)
    vars(counting).update(vars(predictor))
    windows = sum(
        len(found) for found in counting.each(paths[:1] * (2 * BATCH + 3)) if not isinstance(found, AudioError)
    )
    assert sizes == [BATCH, BATCH, 3]
    assert windows == sum(sizes)


def test_unreachable_files_are_counted_separately(
    predictor: Predictor, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_at_times(path: str) -> str:
        if path.endswith("2.wav"):
            raise UnreachableError("time-out")
        return path

    monkeypatch.setattr("raymae.inference.labeller.open_clip", fails_at_times)
    table = Labeller(predictor, "file", 2)(paths)
    assert int(table.schema.metadata[UNREACHABLE]) == 1
    assert table["error"].to_pylist()[3] == "time-out"


def test_an_unexpected_error_in_a_thread_is_raised(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymae.inference.labeller.open_clip", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Labeller(predictor, "file", 2)(["a.wav"] * 3)


def test_multi_label_predictions_are_joined_as_by_the_predictor(tmp_path: Path, paths: list[str]) -> None:
    multi_label = replace(TINY.finetune, labels="multi")
    predictor = Predictor(write_tiny(Folder(str(tmp_path)), NAMES, multi_label))
    table = Labeller(predictor, "file", 2)(paths)
    assert table["scene_label"].to_pylist() == [predictor.row(path)["scene_label"] for path in paths]
    assert any(";" in label for label in table["scene_label"].drop_null().to_pylist())


def test_a_class_may_have_the_name_of_a_column(tmp_path: Path, paths: list[str]) -> None:
    predictor = Predictor(write_tiny(Folder(str(tmp_path)), ["error", "path"]))
    table = Labeller(predictor, "file", 1)(paths[:1])
    assert table.column(3).to_pylist() == [None]
    assert pa.types.is_float32(table.schema.field(4).type)
