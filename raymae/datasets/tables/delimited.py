"""Read delimited text: CSV with commas, tabs or semicolons, as text, with the line of every row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.csv as pa_csv

DELIMITERS = (",", "\t", ";")
"""The delimiters, the first one on ties."""


def find_delimiter(data: bytes, wanted: Sequence[str]) -> str:
    """The delimiter with which the header has the first of the `wanted` columns, most of the others and most columns.

    Only the header counts: cells may hold any of them, such as the classes `rain;dog`.
    """

    def rank(delimiter: str) -> tuple[bool, int, int]:
        header = header_of(data, delimiter)
        known = set(header)
        return wanted[0] in known, sum(name in known for name in wanted), len(header)

    return max(DELIMITERS, key=rank)


def header_of(data: bytes, delimiter: str) -> list[str]:
    """The names in the first record; none where it can't be read with this delimiter."""
    try:
        return next(records(data, delimiter), (1, []))[1]
    except csv.Error:
        return []


def records(data: bytes, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file, each with the line that it begins on, without blank lines."""
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""), delimiter=delimiter)
    end = 0
    for record in reader:
        if record:
            yield end + 1, record
        end = reader.line_num


def read_text(data: bytes, delimiter: str, columns: Sequence[str]) -> pa.Table:
    """The columns as text, null where a cell is empty; raises pa.ArrowException for ragged rows."""
    return pa_csv.read_csv(
        pa.BufferReader(data),
        read_options=pa_csv.ReadOptions(use_threads=False),  # so that the error of a malformed row has its number
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            null_values=[""],  # Arrow's default list would turn a label "NA" into unlabelled
            strings_can_be_null=True,
        ),
    )


def lines_of(data: bytes, delimiter: str, count: int) -> Iterable[int]:
    """The line on which every one of `count` rows begins; parsed only with blank lines or line breaks within quotes."""
    if data.count(b"\n") + (not data.endswith(b"\n")) == count + 1:
        return range(2, count + 2)
    return [line for line, _ in records(data, delimiter)][1:]
