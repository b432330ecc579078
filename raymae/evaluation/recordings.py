"""Predictions of recordings: the mean over their clips, as `raymae.inference.predictor.Predictor` averages windows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def has_parts(clips: pa.Table) -> bool:
    """Whether a clip table holds several clips of one recording."""
    return "recording" in clips.column_names and len(pc.unique(clips["recording"])) < len(clips)


def by_recording(predictions: pa.Table) -> pa.Table:
    """From a row per clip (column probabilities) to a row per recording, in the order of their first clips.

    The probabilities are the mean over the clips, weighted by their seconds; the other columns are those of the first
    clip, clip_id is the recording. A table without recordings of several clips is returned as it is.
    """
    if not has_parts(predictions):
        return predictions
    number = predictions["recording"].combine_chunks().dictionary_encode().indices.to_numpy()
    seconds = pc.fill_null(pc.subtract(predictions["end_seconds"], predictions["start_seconds"]), 1.0).to_numpy()
    values = pc.list_flatten(predictions["probabilities"]).to_numpy().reshape(len(number), -1).astype(np.float64)
    total, weight = np.zeros((number.max() + 1, values.shape[1])), np.bincount(number, seconds)
    np.add.at(total, number, values * seconds[:, None])
    first = predictions.take(np.unique(number, return_index=True)[1])
    mean = (total / weight[:, None]).astype(np.float32)
    columns = {
        "clip_id": first["recording"],
        "start_seconds": pa.nulls(len(first), pa.float64()),
        "end_seconds": pa.nulls(len(first), pa.float64()),
        "probabilities": pa.array(list(mean), pa.list_(pa.float32())),
    }
    for name, column in columns.items():
        first = first.set_column(first.schema.get_field_index(name), name, column)
    return first
