"""Balanced sampling of labelled clips: every cell equally often, no clip left out, also beside unlabelled ones."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raymae.config import ConsistencyConfig, FinetuneConfig
from raymae.datasets.rows import rows_of
from raymae.features.store import FeatureStore
from raymae.storage.folder import Folder
from raymae.training.batches.order import Order, PairedOrder
from raymae.training.spec import StageSpec, labelled_rows
from tests.support.training import TINY
from tests.support.training import make_spec as make_one


def make_spec(store: FeatureStore, folder: Path, balance: str, kind: str = "finetune") -> StageSpec:
    finetune = replace(TINY.finetune, balance=balance, epochs=12)
    consistency = ConsistencyConfig(epochs=12, ratio=2)
    config = replace(TINY, finetune=finetune, consistency=consistency)
    return StageSpec(name=kind, kind=kind, config=config, artifact=Folder(str(folder)), store=store)  # type: ignore[arg-type]


def unequal(store: FeatureStore) -> FeatureStore:
    """The store with four labelled clips of "low" for each of "high", and most of them on device a."""
    clips = store.clips
    train = rows_of(clips, "train", labelled=True)
    labels, devices = clips["scene_label"].to_pylist(), clips["device"].to_pylist()
    for number, row in enumerate(train):
        labels[row], devices[row] = "high" if number % 5 == 0 else "low", "b" if number in (0, 1, 2, 5) else "a"
    for name, values in (("scene_label", labels), ("device", devices)):
        clips = clips.set_column(clips.column_names.index(name), name, pa.chunked_array([pa.array(values)]))
    other = FeatureStore(store.folder, store.shards)
    other.__dict__["clips"] = clips
    return other


def visits(order: Order, epochs: int) -> Counter[int]:
    return Counter(order.rows_at(np.arange(epochs * order.rows_per_epoch)).tolist())


@pytest.mark.parametrize(("balance", "cells"), [("class", 2), ("class_device", 4)])
def test_cells_are_sampled_equally_often_and_every_clip_is(
    store: FeatureStore, tmp_path: Path, balance: str, cells: int
) -> None:
    store = unequal(store)
    order = make_spec(store, tmp_path, balance).order()
    rows, targets = labelled_rows(make_spec(store, tmp_path, balance))
    assert order.rows_per_epoch == len(rows) // cells * cells
    found = visits(order, 24)
    assert set(found) == set(rows.tolist())
    classes = targets.argmax(axis=1)
    devices = store.clips["device"].to_pylist()
    shares: Counter[tuple[int, str]] = Counter()
    for row, count in found.items():
        shares[int(classes[row]), devices[row] if cells == 4 else ""] += count
    assert len(shares) == cells
    assert set(shares.values()) == {24 * (len(rows) // cells)}


def test_balancing_works_beside_unlabelled_clips(store: FeatureStore, tmp_path: Path) -> None:
    store = unequal(store)
    paired = make_spec(store, tmp_path, "class", "consistency").order()
    assert isinstance(paired, PairedOrder)
    unlabelled = set(rows_of(store.clips, "train", labelled=False).tolist())
    first, second = (visits(part, 6) for part in paired.parts)
    assert set(second) == unlabelled
    labels = store.clips["scene_label"].to_pylist()
    by_class = Counter[str]()
    for row, count in first.items():
        by_class[labels[row]] += count
    assert by_class["high"] == by_class["low"]


def test_without_balance_every_clip_comes_once(store: FeatureStore, tmp_path: Path) -> None:
    assert set(visits(make_spec(store, tmp_path, "none").order(), 1).values()) == {1}


def neighbours_that_meet(order: Order, size: int = 8) -> float:
    """Pairs of a mixing group, one in 10 epochs, that are of one run of `size` neighbours in the store, as a multiple
    of those that a full shuffle is expected to bring together."""
    rows = np.concatenate(order.rows)
    run = np.zeros(rows.max() + 1, np.int64)
    run[rows] = np.arange(len(rows)) // size
    groups = np.concatenate([order.window_rows(number) for number in range(order.windows)]).reshape(
        -1, order.group_size
    )
    same = run[groups][:, :, None] == run[groups][:, None, :]
    pairs = order.group_size * (order.group_size - 1)
    return float((same.sum((1, 2)) - order.group_size).mean() / pairs / ((size - 1) / (len(rows) - 1)))


def test_stages_with_labels_shuffle_fully(store: FeatureStore, tmp_path: Path) -> None:
    """The clips of a recording, which are neighbours in the store, meet in a step as often as any others."""
    many = FeatureStore(store.folder, store.shards)
    many.__dict__["clips"] = pa.concat_tables([store.clips] * 20)
    spec = make_spec(many, tmp_path, "none")
    paired = make_spec(many, tmp_path, "none", "consistency").order()
    assert isinstance(paired, PairedOrder)
    orders = [spec.order(), replace(spec, cnn="test_resnet").order(), *paired.parts]
    assert [neighbours_that_meet(one) for one in orders] == pytest.approx([1] * 4, abs=0.35)
    assert neighbours_that_meet(make_spec(many, tmp_path, "none", "pretrain").order()) > 5


def test_kinds_of_labels_are_balanced_in_their_own_ways() -> None:
    with pytest.raises(ValueError, match="balance = class is for single-label clips"):
        FinetuneConfig(labels="multi", balance="class")
    with pytest.raises(ValueError, match="balance = label_frequency is for multi-label clips"):
        FinetuneConfig(balance="label_frequency")


def multi_label(store: FeatureStore, folder: Path) -> StageSpec:
    """Of a store whose labelled clips are 3 of "rare" alone, 1 of "rare; common" and else of "common" alone."""
    clips = store.clips
    labels = [None if one is None else "common" for one in clips["scene_label"].to_pylist()]
    for number, row in enumerate(rows_of(clips, "train", labelled=True)[:4]):
        labels[row] = "rare; common" if number == 3 else "rare"
    column = pa.chunked_array([pa.array(labels, pa.string())])
    other = FeatureStore(store.folder, store.shards)
    other.__dict__["clips"] = clips.set_column(clips.column_names.index("scene_label"), "scene_label", column)
    finetune = replace(TINY.finetune, labels="multi", balance="label_frequency", epochs=400)
    return make_one(other, folder, "finetune", replace(TINY, finetune=finetune))


def test_multi_label_clips_are_drawn_by_inverse_label_frequency(store: FeatureStore, tmp_path: Path) -> None:
    spec = multi_label(store, tmp_path)
    order, rows = spec.order(), rows_of(store.clips, "train", labelled=True)
    common = len(rows) - 3  # clips that have it
    expected = np.full(len(rows), 1 / common)
    expected[:4] = [1 / 4, 1 / 4, 1 / 4, 1 / 4 + 1 / common]
    expected /= expected.sum()
    assert order.rows_per_epoch == len(rows)
    count = 400 * len(rows)
    drawn = np.bincount(order.rows_at(np.arange(count)), minlength=len(store))[rows]
    assert drawn.sum() == count
    deviation = np.sqrt(expected * (1 - expected) / count)
    assert np.abs((drawn / count - expected) / deviation).max() < 4.5
    # with replacement: in one epoch some clips come twice and some not at all
    once = np.bincount(order.rows_at(np.arange(len(rows))), minlength=len(store))[rows]
    assert once.min() == 0
    assert once.max() > 1


def test_weighted_draws_belong_to_their_places(store: FeatureStore, tmp_path: Path) -> None:
    """So that a resumed run, and one with other workers, draws the same clips."""
    order = replace(multi_label(store, tmp_path).order(), epochs=3)
    positions = np.concatenate([order.window_positions(number) for number in range(order.windows)])
    whole = order.rows_at(np.arange(len(positions)))
    assert sorted(positions) == list(range(len(positions)))
    for number in range(order.windows):
        assert np.array_equal(order.window_rows(number), whole[order.window_positions(number)])
    assert not np.array_equal(whole, replace(order, seed=order.seed + 1).rows_at(np.arange(len(positions))))
