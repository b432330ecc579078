"""True classes of unlabelled clips (`pseudo_label.truth`), only for scoring pseudo-labels."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import redact
from raymae.datasets.tables.locate import reject
from raymae.datasets.tables.table import MetadataTable

COLUMNS = ("filename", "scene_label")


def read_truth(url: str, clips: pa.Table, class_names: Sequence[str]) -> pa.Table:
    """clip_id and scene_label of the unlabelled training clips whose class is in a table.

    Rows without a class, and those of other clips of the run, are ignored, so that a complete table can be given.
    Raises ValueError for a table that can't be read, that names a clip or class that is not in the run, or that has the
    class of no unlabelled training clip.
    """
    table = MetadataTable.open(url, COLUMNS)
    rows = table.texts(COLUMNS)
    unknown = pc.invert(pc.is_in(rows["filename"], value_set=clips["clip_id"].combine_chunks()))
    reject(table.name, rows, unknown, "filename", "name a clip of this run (pseudo_label.truth)")
    rows = rows.filter(pc.is_valid(rows["scene_label"]))
    other = pc.invert(pc.is_in(rows["scene_label"], value_set=pa.array(class_names, pa.string())))
    reject(table.name, rows, other, "scene_label", f"be one of {', '.join(class_names)} (pseudo_label.truth)")
    is_unlabelled = pc.and_(pc.equal(clips["split"], "train"), pc.is_null(clips["scene_label"]))
    unlabelled = clips["clip_id"].filter(is_unlabelled).combine_chunks()
    found = rows.filter(pc.is_in(rows["filename"], value_set=unlabelled))
    if not len(found):
        raise ValueError(f"pseudo_label.truth {redact(url)} has the class of no unlabelled clip of split train")
    return pa.table({"clip_id": found["filename"], "scene_label": found["scene_label"]})
