"""DCASE 2024 and 2025 task 1: training subsets of TAU 2022 Mobile, the official test fold, and mistakes."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow.compute as pc
import pytest

from raymae.config import DataConfig
from raymae.datasets.clips import gather, load
from tests.support.published import message, recordings, rows_of, write

SUBSETS = (5, 10, 25, 50, 100)
TRAIN = [
    f"audio/{scene}-lyon-{place}-{place}-{part}-a.wav"
    for scene in ("bus", "park")
    for place in range(10)
    for part in (0, 1)
]
TEST = [f"audio/{scene}-oslo-5{place}-5{place}-0-s4.wav" for scene in ("bus", "park") for place in range(2)]
OTHER = ["audio/bus-lyon-3-77-0-b.wav", "audio/park-oslo-51-78-0-a.wav"]


def folder(root: Path, subsets: str = "") -> Path:
    """TAU 2022 Mobile's folder with the task's CSVs, each holding the first clips of the next."""
    lines = ["filename\tscene_label\tidentifier\tsource_label"]
    for name in [*TRAIN, *TEST, *OTHER]:
        scene, city, place, *_, device = name.removeprefix("audio/").removesuffix(".wav").split("-")
        lines.append(f"{name}\t{scene}\t{city}-{place}\t{device}")
    write(root / "meta.csv", lines)
    scenes = [f"{name}\t{name.removeprefix('audio/').split('-')[0]}" for name in TEST]
    write(root / "evaluation_setup/fold1_evaluate.csv", ["filename\tscene_label", *scenes])
    order = [name for pair in zip(TRAIN[:20], TRAIN[20:], strict=True) for name in pair]
    for percent in SUBSETS:
        write(root / subsets / f"split{percent}.csv", ["filename", *order[: max(2, len(order) * percent // 100)]])
    return root


@pytest.mark.parametrize("subsets", ["", "split_setup", "evaluation_setup"])
def test_subsets_nest_and_share_the_test(tmp_path: Path, subsets: str) -> None:
    root = folder(tmp_path, subsets)
    before: set[str] = set()
    for percent in SUBSETS:
        rows = rows_of("dcase2024_task1", root, subset=percent)
        train = rows.filter(pc.equal(rows["split"], "train"))
        assert len(train) == max(2, len(TRAIN) * percent // 100)
        assert before < {*train["clip_id"].to_pylist()} <= set(TRAIN)
        before = {*train["clip_id"].to_pylist()}
        assert rows.filter(pc.equal(rows["split"], "test"))["clip_id"].to_pylist() == TEST
        assert len(rows) == len(train) + len(TEST)
    assert rows.equals(rows_of("dcase2024_task1", root))
    quarter, of_2025 = rows_of("dcase2024_task1", root, subset=25), rows_of("dcase2025_task1", root)
    assert of_2025["clip_id"].equals(quarter["clip_id"])
    assert of_2025["device"].unique().to_pylist() == ["a", "s4"]


def test_clips_outside_of_the_subset_are_not_even_in_the_pool(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path)
    recordings(root / "audio", [name.removeprefix("audio/") for name in [*TRAIN, *TEST, *OTHER]])
    with caplog.at_level(logging.INFO):
        clips = load(DataConfig(dataset="dcase2025_task1", root=str(root)), None, "single")
    assert set(clips["split"].to_pylist()) == {"train", "test"}
    left = len(TRAIN) + len(OTHER) - 10
    assert f"{left} clips are neither in split25.csv nor in the test fold and are left out" in caplog.text


def test_wrong_folders_and_settings(tmp_path: Path) -> None:
    root = folder(tmp_path)
    found = gather(DataConfig(dataset="dcase2025_task1", root=str(root)), None)[1]
    assert found[0] == "dcase2025_task1: 4 clips of split test, the whole data set has 29,680 to 29,700"
    (root / "split25.csv").unlink()
    assert "has no split25.csv, no split_setup/split25.csv, no evaluation_setup" in message("dcase2025_task1", root)
    write(root / "split25.csv", ["filename", TEST[0]])
    assert "split25.csv, column filename, row 2" in message("dcase2025_task1", root)
    write(root / "split25.csv", ["filename", "audio/bus-lyon-99-99-0-a.wav"])
    assert "split25.csv lists 1 of 1 clips that the data set doesn't contain: row 2" in message("dcase2025_task1", root)
    with pytest.raises(ValueError, match=r"data\.subset = 7 must be one of 5, 10, 25, 50, 100"):
        DataConfig(dataset="dcase2024_task1", subset=7)
    with pytest.raises(ValueError, match=r"data\.subset = 5 has no effect with data\.dataset = dcase2025_task1"):
        DataConfig(dataset="dcase2025_task1", subset=5)
