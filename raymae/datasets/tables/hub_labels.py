"""Labels of Hugging Face's audio tables as text: names of classes, numbers of classes, and lists of either."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymae.datasets.labels import SEPARATOR
from raymae.datasets.tables.header import some
from raymae.datasets.tables.locate import reject
from raymae.datasets.tables.settings import TableSettings
from raymae.datasets.tables.values import with_labels

METADATA = b"huggingface"
"""Key of the features in a Parquet file's metadata."""


def class_labels(name: str, schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes of every column of ClassLabel, or of lists of it, in a table's metadata.

    Raises ValueError for a class without a name, or with a `SEPARATOR` in it.
    """
    try:
        features = json.loads((schema.metadata or {})[METADATA])["info"]["features"]
        found = {column: names_in(feature) for column, feature in features.items() if column in schema.names}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    known = {column: names for column, names in found.items() if names is not None}
    for column, names in known.items():
        wrong = [one for one in names if not isinstance(one, str) or not one.strip() or SEPARATOR in one]
        if wrong:
            raise ValueError(
                f"{name}, column {column}: the class {wrong[0]!r} should have a name without {SEPARATOR!r}"
            )
    return known


def names_in(feature: object) -> list[str] | None:
    """The names of the classes of a feature; a list's feature is an item of a list, or of the key "feature"."""
    if isinstance(feature, list):
        return names_in(feature[0]) if feature else None
    if not isinstance(feature, dict):
        return None
    if "feature" in feature:
        return names_in(feature["feature"])
    return feature.get("names") if feature.get("_type") == "ClassLabel" else None


def choose_column(name: str, schemas: dict[str, pa.Schema], wanted: str) -> str | None:
    """The column of labels of some files (by name): `wanted`, or by default the only one of classes; None: no labels.

    Raises ValueError where a file doesn't have the column, and where there are several columns of classes.
    """
    if wanted == "scene_label" and not any(wanted in schema.names for schema in schemas.values()):
        found = sorted({column for file, schema in schemas.items() for column in class_labels(file, schema)})
        if len(found) > 1:
            raise ValueError(f"{name} has several columns of classes, {some(found)}: choose by --data.label-column")
        if not found:
            return None
        wanted = found[0]
    lacking = next((file for file, schema in schemas.items() if wanted not in schema.names), None)
    if lacking:
        columns = some(map(repr, schemas[lacking].names))
        raise ValueError(f"{lacking} has no column {wanted}; its columns are {columns}")
    return wanted


def label_texts(name: str, values: pa.Array, column: str, classes: list[str] | None, separator: str) -> pa.Array:
    """Labels (n,) as scene_label: classes joined by `SEPARATOR`, null for an empty one, an empty list and -1.

    `classes` names numbers; text is split at `separator`. Raises ValueError, with the first rows, for a number beyond
    the classes, for a class with a `SEPARATOR` in a list, and for values that are no labels.
    """
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        texts = single(name, values, np.arange(len(values)), column, classes)
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            settings = TableSettings(label=column, separator=separator)
            texts = with_labels(name, numbered(texts, "scene_label"), settings)["scene_label"].combine_chunks()
        return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    of_row = np.repeat(np.arange(len(values)), lengths)
    texts = single(name, values.flatten(), of_row, column, classes)
    wrong = pc.or_(pc.is_null(texts), pc.fill_null(pc.match_substring(texts, SEPARATOR), False))
    reject(name, numbered(texts, column, of_row), wrong, column, f"be a class without {SEPARATOR!r}")
    ends = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    joined = pc.binary_join(pa.ListArray.from_arrays(ends, texts), SEPARATOR)
    return pc.if_else(pa.array(lengths == 0), pa.scalar(None, pa.string()), joined)


def single(name: str, values: pa.Array, of_row: np.ndarray, column: str, classes: list[str] | None) -> pa.Array:
    """Labels that are no lists as text; null for a number below 0, by which the hub marks unlabelled clips."""
    kind = values.type
    if pa.types.is_integer(kind) and classes is not None:
        beyond = pc.fill_null(pc.greater_equal(values, len(classes)), False)
        shown = numbered(values.cast(pa.string()), column, of_row)
        reject(name, shown, beyond, column, f"be less than {len(classes)}, the number of classes")
        return pa.array(classes, pa.string()).take(pc.if_else(pc.less(values, 0), None, values))
    plain = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_null)
    if not any(test(kind) for test in plain):
        raise ValueError(
            f"{name}, column {column}: labels should be text, numbers of classes, or lists of them; not {kind}"
        )
    return values.cast(pa.string())


def numbered(texts: pa.Array, column: str, of_row: np.ndarray | None = None) -> pa.Table:
    """A column with the number (from 1) of each value's row, for messages."""
    rows = np.arange(len(texts)) if of_row is None else of_row
    return pa.table({column: texts, "row": pa.array(rows + 1, pa.int64())})
