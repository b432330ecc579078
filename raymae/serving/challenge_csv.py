"""Fill in the CAS 2023 challenge's evaluation CSV; rows, order, columns, line ends and byte-order mark stay."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from raymae.datasets.published.cas2023 import CLASSES

BOM = b"\xef\xbb\xbf"
EXAMPLES = 3


@dataclass(frozen=True)
class Submission:
    """A CSV to fill in."""

    path: str
    header: list[str]
    rows: list[list[str]]
    bom: bool
    line_end: str

    @property
    def names(self) -> list[str]:
        """The values of the column filename."""
        column = self.header.index("filename")
        return [row[column] for row in self.rows]

    def files(self, paths: Iterable[str]) -> list[str]:
        """The recording of every row, in order; ValueError names the rows with none or with two."""
        found: dict[str, str] = {}
        for path in paths:
            name = stem(path)
            if name in found and name in self.names:
                raise ValueError(f"--predict.inputs: {found[name]} and {path} both match {name!r} in {self.path}")
            found[name] = path
        self._refuse([name not in found for name in self.names], "no recording among --predict.inputs")
        return [found[name] for name in self.names]

    def filled(self, labels: Sequence[str | None]) -> bytes:
        """The content of the file with a label for every row, in order; ValueError names the rows without one."""
        self._refuse([not label for label in labels], "a recording that can't be read")
        column = self.header.index("scene_label")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator=self.line_end)
        writer.writerow(self.header)
        for row, label in zip(self.rows, labels, strict=True):
            writer.writerow([*row[:column], label, *row[column + 1 :]])
        return (BOM if self.bom else b"") + text.getvalue().encode()

    def _refuse(self, wrong: Sequence[bool], why: str) -> None:
        rows = [
            f"row {number}: {name}" for number, (name, bad) in enumerate(zip(self.names, wrong, strict=True), 2) if bad
        ]
        if rows:
            more = f" and {len(rows) - EXAMPLES} more" if len(rows) > EXAMPLES else ""
            raise ValueError(
                f"{self.path}: {len(rows)} of {len(self.rows)} rows have {why}: {', '.join(rows[:EXAMPLES])}{more}; "
                "a submission needs all"
            )


def stem(path: str) -> str:
    """The challenge's name of a recording: its file name without folder and extension."""
    return PurePosixPath(path.rpartition("::")[0].removeprefix("tar://") or path).stem


def read_submission(path: str) -> Submission:
    """Read the CSV; ValueError if it misses a column, has ragged rows or has a name twice."""
    try:
        content = Path(path).expanduser().read_bytes()
        text = content.decode("utf-8-sig")
        records = [record for record in csv.reader(io.StringIO(text, newline="")) if record]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--predict.submission {path} can't be read: {error}") from None
    header, rows = (records[0], records[1:]) if records else ([], [])
    if not rows or header.count("filename") != 1 or header.count("scene_label") != 1:
        raise ValueError(
            f"--predict.submission {path} should have the columns filename,scene_label and rows; has {header}"
        )
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}, row {number}: {len(row)} columns, should have {len(header)}")
    line_end = "\r\n" if "\r\n" in text else "\n"
    found = Submission(path, header, rows, content.startswith(BOM), line_end)
    seen: set[str] = set()
    for number, name in enumerate(found.names, start=2):
        if name in seen or not name:
            raise ValueError(
                f"{path}, column filename, row {number}: {name!r} should be a name that no earlier row has"
            )
        seen.add(name)
    return found


def check_classes(card: Mapping[str, object], path: str) -> None:
    """ValueError for a classifier (its classifier.json) that is multi-label or has classes not in the challenge."""
    names, finetune = card["class_names"], card["finetune"]
    assert isinstance(names, list)
    assert isinstance(finetune, dict)
    other = [name for name in names if name not in CLASSES]
    if other or finetune.get("labels") == "multi":
        raise ValueError(
            f"--predict.submission {path}: the classifier predicts {', '.join(names)}; the challenge wants one of "
            f"{', '.join(CLASSES)} for each clip"
        )
