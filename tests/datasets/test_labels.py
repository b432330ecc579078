"""Labels of clips as lists of classes and as targets."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.datasets.labels import SEPARATOR, class_set, label_lists, target_matrix

NAMES = ["bus", "park", "tram"]
CLASSES = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4)
SPACES = st.sampled_from(["", " ", "  ", "\t"])


def column(texts: list[str | None], pieces: int = 1) -> pa.ChunkedArray:
    """The texts in some chunks."""
    return pa.chunked_array([pa.array(part, pa.string()) for part in np.array_split(np.array(texts, object), pieces)])


@given(st.lists(st.none() | st.lists(st.tuples(SPACES, st.sampled_from(NAMES), SPACES), min_size=1, max_size=4)))
def test_a_clip_has_the_classes_between_the_separators(clips: list[list[tuple[str, str, str]] | None]) -> None:
    texts = [None if parts is None else SEPARATOR.join("".join(part) for part in parts) for parts in clips]
    sets = [set() if parts is None else {name for _, name, _ in parts} for parts in clips]
    for pieces in (1, 3):
        matrix = target_matrix(column(texts, pieces), NAMES, "multi")
        assert matrix.shape == (len(texts), 3)
        assert matrix.dtype == np.float32
        assert matrix.toarray().tolist() == [[float(name in one) for name in NAMES] for one in sets]
        assert class_set(column(texts, pieces), "multi") == sorted(set().union(*sets))


@given(st.lists(st.none() | st.sampled_from(["a;b", " bus ", "tram"])))
def test_a_single_class_is_the_text_unchanged(texts: list[str | None]) -> None:
    names = class_set(column(texts), "single")
    assert names == sorted({text for text in texts if text is not None})
    rows = target_matrix(column(texts, 2), names, "single").toarray()
    assert [None if not row.any() else names[row.argmax()] for row in rows] == texts
    assert (rows.sum(axis=1) <= 1).all()


def test_classes_keep_their_order_and_an_empty_one_is_kept() -> None:
    found = label_lists(column(["tram; bus", None, "park;", ""]), "multi")
    assert found.to_pylist() == [["tram", "bus"], None, ["park", ""], [""]]


def test_a_slice_is_read_from_its_own_beginning() -> None:
    sliced = column(["bus", "park;bus", "tram"])[1:]
    assert target_matrix(sliced, NAMES, "multi").toarray().tolist() == [[1, 1, 0], [0, 0, 1]]
    assert label_lists(sliced, "single").to_pylist() == [["park;bus"], ["tram"]]


@pytest.mark.parametrize(("text", "labels"), [("moon", "single"), ("bus;moon", "multi")])
def test_an_unknown_class_is_an_error(text: str, labels: str) -> None:
    with pytest.raises(ValueError, match="'moon' is not one of the classes bus, park, tram"):
        target_matrix(column(["bus", text]), NAMES, labels)


def test_long_tables_are_taken_apart_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["bus; tram", None, "tram", "", "metro;bus;bus"] * 3
    whole = target_matrix(column(texts, 2).slice(1), ["", "bus", "metro", "tram"], "multi").toarray()
    names = class_set(column(texts, 2), "multi")
    monkeypatch.setattr("raymae.datasets.labels.PART", 4)
    found = target_matrix(column(texts, 2).slice(1), ["", "bus", "metro", "tram"], "multi")
    assert found.dtype == np.float32
    assert np.array_equal(found.toarray(), whole)
    assert class_set(column(texts, 2), "multi") == names
