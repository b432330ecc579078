"""Label tables, a row per file or per window, from a classifier shared by several threads. Works without Ray.

Each thread reads, decodes, featurizes and classifies whole files, 16 windows at a time: the slow steps release the GIL,
and no features are passed between threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymae.audio.errors import AudioError, SilentError, UnreachableError
from raymae.audio.sources import open_clip
from raymae.config import LabelLevel
from raymae.datasets.labels import probability_columns

if TYPE_CHECKING:
    from raymae.inference.predictor import Predictor
    from raymae.inference.windowed import Window

UNREACHABLE = b"unreachable"
"""Key in a table's metadata: number of files that the storage temporarily failed to return."""
FILES = b"files"
"""Key in a table's metadata: number of files."""
FAILED = b"failed"
"""Key in a table's metadata: number of files with an error."""


def schema(class_names: Sequence[str], level: LabelLevel) -> pa.Schema:
    """The schema of a label table; the probabilities are in columns `p_<class>`."""
    times = [("start_seconds", pa.float64()), ("end_seconds", pa.float64())] if level == "window" else []
    labels = [("scene_label", pa.string()), ("confidence", pa.float32()), ("error", pa.string())]
    probabilities = [(name, pa.float32()) for name in probability_columns(class_names)]
    return pa.schema([("path", pa.string()), *times, *labels, *probabilities])


@dataclass(frozen=True)
class Labelled:
    """Result for a file: times and probabilities of its windows or of the whole file, or an error and NaN (n = 1).

    The probabilities of silent windows are NaN.
    """

    times: NDArray[np.float64]
    """(n, 2), seconds."""
    values: NDArray[np.float32]
    """(n, C)"""
    error: AudioError | None = None


class Labeller:
    """Label files with a classifier on several threads, each computing on one core."""

    def __init__(self, predictor: Predictor, level: LabelLevel, threads: int) -> None:
        import torch

        self.predictor, self.level = predictor, level
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, paths: Sequence[str]) -> pa.Table:
        """The label table of some files, in their order; its metadata counts files, failed and unreachable ones."""
        found: list[Labelled | None] = [None] * len(paths)
        numbers = iter(range(len(paths)))  # shared by the threads: `next` on it is atomic under the GIL
        for future in [self.pool.submit(self._work, paths, numbers, found) for _ in range(self.threads)]:
            future.result()
        return label_table(self.predictor, self.level, paths, [one for one in found if one is not None])

    def _work(self, paths: Sequence[str], numbers: Iterator[int], found: list[Labelled | None]) -> None:
        """Take file numbers from `numbers` until there are none left, and write their results to `found`."""
        taken: list[int] = []

        def take() -> Iterator[str]:
            for number in numbers:
                taken.append(number)
                yield paths[number]

        for place, windows in enumerate(self.predictor.each(take(), open_clip)):
            found[taken[place]] = labelled(self.predictor, self.level, windows)


def labelled(predictor: Predictor, level: LabelLevel, windows: list[Window] | AudioError) -> Labelled:
    """The result for a file from its windows, or from its error."""
    if isinstance(windows, AudioError):
        shape = (1, len(predictor.class_names))
        return Labelled(np.full((1, 2), np.nan), np.full(shape, np.nan, np.float32), windows)
    times = np.array([(start, end) for start, end, _ in windows])
    if level == "window":
        unknown = np.full(len(predictor.class_names), np.nan, np.float32)
        return Labelled(times, np.stack([unknown if value is None else value for _, _, value in windows]))
    return Labelled(np.array([[times[0, 0], times[-1, 1]]]), predictor.average(windows)[None].astype(np.float32))


def label_table(
    predictor: Predictor, level: LabelLevel, paths: Sequence[str | None], found: Sequence[Labelled]
) -> pa.Table:
    """The label table of some files, None for recordings without a path.

    Its metadata counts files, failed and unreachable ones.
    """
    rows = np.repeat(np.arange(len(paths)), [len(one.values) for one in found])
    times, values = (np.concatenate([getattr(one, name) for one in found]) for name in ("times", "values"))
    failed = np.isnan(values).any(1)
    silent = SilentError()
    errors = [found[row].error or (silent if bad else None) for row, bad in zip(rows.tolist(), failed, strict=True)]
    labels = [(None, None) if bad else predictor.label(one) for bad, one in zip(failed, values, strict=True)]
    windows = [pa.array(times[:, side], from_pandas=True) for side in (0, 1)] if level == "window" else []
    columns = [
        pa.array(paths, pa.string()).take(pa.array(rows)),
        *windows,
        pa.array([label for label, _ in labels], pa.string()),
        pa.array([confidence for _, confidence in labels], pa.float32()),
        pa.array([error and str(error) for error in errors], pa.string()),
        *(pa.array(column, mask=failed) for column in values.T),
    ]
    unreachable = sum(isinstance(error, UnreachableError) for error in errors)
    counts = {FILES: len(paths), FAILED: sum(one.error is not None for one in found), UNREACHABLE: unreachable}
    metadata = {name: str(count).encode() for name, count in counts.items()}
    return pa.table(columns, schema(predictor.class_names, level).with_metadata(metadata))
