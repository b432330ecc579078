"""Delimited tables: the same rows, whichever delimiter, quotes and byte-order mark they are written with."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymae.datasets.labels import label_lists
from raymae.datasets.tables.delimited import DELIMITERS
from raymae.datasets.tables.settings import TableSettings
from raymae.datasets.tables.table import read_table

TEXT = st.text("ab ;,\t\"'é\n", max_size=8)
COLUMNS = st.lists(
    st.text('xy ;,\t"é', min_size=1, max_size=8).filter(lambda name: name.strip()), max_size=4, unique=True
)


def written(rows: list[list[str]], delimiter: str, quoting: int, bom: bool, line_end: str) -> bytes:
    """A delimited file."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=quoting).writerows(rows)  # type: ignore[arg-type]
    return (b"\xef\xbb\xbf" if bom else b"") + text.getvalue().encode()


def read(content: bytes, table: TableSettings = TableSettings()) -> list[dict[str, object]]:  # noqa: B008
    """The rows of a table, without what depends on its folder."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "t.csv").write_bytes(content)
        rows = read_table(f"{folder}/t.csv", settings=table)
    return rows.drop_columns(["path"]).to_pylist()


@settings(deadline=None, max_examples=60)
@given(
    others=COLUMNS,
    cells=st.lists(st.lists(TEXT, min_size=6, max_size=6), min_size=1, max_size=4),
    place=st.integers(0, 4),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    bom=st.booleans(),
    line_end=st.sampled_from(["\n", "\r\n"]),
)
def test_a_table_reads_the_same_with_every_delimiter(
    others: list[str], cells: list[list[str]], place: int, quoting: int, bom: bool, line_end: str
) -> None:
    header = [*others[:place], "filename", *others[place:], "scene_label"]
    place = header.index("filename")
    rows = [
        [f"{number}.wav" if column == place else row[column] for column in range(len(header))]
        for number, row in enumerate(cells)
    ]
    found = [read(written([header, *rows], delimiter, quoting, bom, line_end)) for delimiter in DELIMITERS]
    assert found[0] == found[1] == found[2]
    assert [row["clip_id"] for row in found[0]] == [row[place] for row in rows]


@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("separator", [";", "|", ","])
def test_separators_within_a_cell_are_no_delimiters(delimiter: str, separator: str) -> None:
    labels = [separator.join(names) for names in (["rain", " dog"], ["bird", "rain", "dog"], ["wind"])]
    rows = [["filename", "labels"], *([f"{number}.wav", label] for number, label in enumerate(labels))]
    content = written(rows, delimiter, csv.QUOTE_MINIMAL, bom=False, line_end="\n")
    table = TableSettings(label="labels", separator=separator)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "t.csv").write_bytes(content)
        found = label_lists(read_table(f"{folder}/t.csv", settings=table)["scene_label"], "multi").to_pylist()
    assert found == [["rain", "dog"], ["bird", "rain", "dog"], ["wind"]]


def test_a_single_column_holds_any_mark() -> None:
    assert [row["clip_id"] for row in read(b"filename\na;b.wav\nc d.wav\n")] == ["a;b.wav", "c d.wav"]
