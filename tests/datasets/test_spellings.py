"""Spellings of a label: blanks are stripped, other differences are an error that names rows, or are merged."""

from __future__ import annotations

import logging
from pathlib import Path
from unicodedata import normalize

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.config import Config, DataConfig, SplitConfig
from raymae.datasets.clips import load
from raymae.datasets.labels import label_lists
from raymae.datasets.overview import check
from raymae.datasets.spellings import check_spellings, key_of, merge_spellings
from raymae.storage.folder import open_storage
from tests.support.clip_tables import clip_table

CLASSES = ("café", "public square", "Straße")
VARIED = st.sampled_from(CLASSES).flatmap(
    lambda name: st.sampled_from(
        [name, name.upper(), name.title(), normalize("NFD", name), name.replace(" ", "\u00a0 "), name.replace(" ", "")]
    )
)


def table(folder: Path, labels: list[str], **settings: object) -> DataConfig:
    """The settings of a table with these labels."""
    rows = [f"{number}.wav,{label},{'test' if number % 2 else 'train'}" for number, label in enumerate(labels)]
    folder.mkdir(exist_ok=True)
    (folder / "t.csv").write_text("\n".join(["filename,scene_label,split", *rows]))
    for number in range(len(labels)):
        (folder / f"{number}.wav").write_bytes(b"sound")
    return DataConfig(dataset="table", tables=(str(folder / "t.csv"),), **settings)  # type: ignore[arg-type]


@given(st.lists(st.lists(VARIED, min_size=1, max_size=3), min_size=1, max_size=12))
def test_merged_labels_have_one_spelling_the_most_frequent(cells: list[list[str]]) -> None:
    rows = clip_table([{"scene_label": ";".join(names)} for names in cells])
    merged = merge_spellings(rows)
    check_spellings(merged)
    before, after = ([one for names in _lists(table) for one in names] for table in (rows, merged))
    assert list(map(key_of, before)) == list(map(key_of, after))
    for name in set(after):
        spelt = [one for one in before if key_of(one) == key_of(name)]
        assert spelt.count(name) == max(map(spelt.count, spelt))
        first = min(spelt.index(one) for one in spelt if spelt.count(one) == spelt.count(name))
        assert spelt[first] == name
    assert merge_spellings(merged) is merged


def _lists(rows: pa.Table) -> list[list[str]]:
    return list(label_lists(rows["scene_label"], "multi").to_pylist())


def test_outer_blanks_are_no_part_of_a_label(tmp_path: Path) -> None:
    config = table(tmp_path, ["bus", " bus ", "bus\t", "rain ; dog", "  ", "\u00a0bus"])
    assert load(config, None)["scene_label"].to_pylist() == ["bus", "bus", "bus", "rain;dog", None, "bus"]


def test_spellings_are_an_error_that_names_both_rows_and_the_option(tmp_path: Path) -> None:
    config = table(tmp_path, ["bus", "tram", "tram", "Bus", "bus"])
    right = (
        "column scene_label: 'bus' (t row 2, 2 clips) and 'Bus' (t row 5) are equal up to case, blanks or Unicode "
        "form: give a class one spelling, or merge them to the most frequent one by --data.merge-labels"
    )
    with pytest.raises(ValueError, match=r"^column") as error:
        load(config, None, "single")
    assert str(error.value) == right
    problems = check(Config(data=config), open_storage(str(tmp_path / "storage")), "single", True)["problems"]
    assert right in problems
    load(config, None)  # pre-training reads no labels


def test_spellings_are_found_before_a_split_leaves_their_clips_out(tmp_path: Path) -> None:
    config = table(tmp_path, [*["bus"] * 9, "Bus"], split=SplitConfig(kind="session", test_share=0.5))
    with pytest.raises(ValueError, match=r"'bus' .* and 'Bus' .* are equal up to case"):
        load(config, None, "single")


def test_forms_that_look_alike_are_escaped(tmp_path: Path) -> None:
    config = table(tmp_path, [normalize("NFC", "café"), normalize("NFD", "café")])
    with pytest.raises(ValueError, match=r"'caf\\xe9' \(t row 2\) and 'cafe\\u0301' \(t row 3\)"):
        load(config, None, "single")


def test_merging_is_one_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = table(tmp_path, ["Bus", "bus", "bus", "Tram", "tram", "bus"], merge_labels=True)
    with caplog.at_level(logging.INFO):
        clips = load(config, None, "single")
    assert clips["scene_label"].to_pylist() == ["bus", "bus", "bus", "Tram", "Tram", "bus"]
    (line,) = [record.getMessage() for record in caplog.records if "merge" in record.getMessage()]
    assert line == "data.merge_labels: merged 'Bus' (1) into 'bus' (3); 'tram' (1) into 'Tram' (1)"
