"""A small table with its recordings."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.support.audio_files import write_tone

COLUMNS = ("filename", "scene_label", "group", "split")
ROWS = [("a.wav", "bus", "", "train"), ("b.wav", "park", "", "train"), ("c.wav", "bus", "", "val")]


def write_table(folder: Path, rows: list[tuple[str, ...]]) -> str:
    folder.mkdir(exist_ok=True)
    for name in {row[0] for row in ROWS}:
        write_tone(folder / name, 440, seconds=0.1)
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return str(folder / "metadata.csv")
