"""Labels against guesses in a student's training: exact shares of every mixing group, and weights of the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raymae.config import AugmentConfig, Config, PseudoLabelConfig
from raymae.datasets.rows import rows_of
from raymae.features.store import FeatureStore
from raymae.pipeline.plan.plan import Plan
from raymae.pseudo_labels.table import FILE
from raymae.storage.folder import Folder
from raymae.training.batches.order import Order, SharedOrder
from raymae.training.batches.windows import rank_slots
from raymae.training.spec import StageSpec, probe_weights
from tests.support.training import TINY, make_spec, passes, trails

ALONE = replace(TINY.finetune, augment=AugmentConfig(), time_mask_ratio=0.0, freq_mask_ratio=0.0, drop_path=0.0)


def config_of(**settings: Any) -> Config:
    finetune = replace(ALONE, epochs=4, global_batch_size=16, mixing_group=8)
    return replace(TINY, finetune=finetune, pseudo_label=PseudoLabelConfig(**settings))


def student(store: FeatureStore, folder: Path, config: Config, count: int | None = None) -> StageSpec:
    """A student of the first `count` unlabelled clips, all guessed to be "high"."""
    rows = rows_of(store.clips, "train", labelled=False)[:count]
    ids = store.clips["clip_id"].take(rows)
    columns = {"pseudo_label": pa.array(["high"] * len(rows), pa.string()), "accepted": pa.array([True] * len(rows))}
    columns["accepted"] = columns["accepted"].cast(pa.bool_())
    Folder(str(folder)).write_table(FILE, pa.table({"clip_id": ids, **columns}))
    return make_spec(store, folder, "finetune", config, pseudo_labels=Folder(str(folder)))


@given(
    labelled=st.integers(1, 60),
    guessed=st.integers(1, 200),
    shares=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    slots=st.integers(1, 3),
    epochs=st.floats(0.3, 4),
    chunk=st.integers(1, 4),
)
def test_every_group_has_its_share_of_both_and_the_run_its_steps(
    labelled: int, guessed: int, shares: tuple[int, int], slots: int, epochs: float, chunk: int
) -> None:
    size = sum(shares)
    common: dict[str, Any] = {"seed": 1, "epochs": epochs, "global_batch_size": size * slots, "group_size": size}
    rows = np.arange(labelled), np.arange(1000, 1000 + guessed)
    order = SharedOrder(rows, (1.0, 1.0), chunk=chunk, shares=shares, **common)
    together = Order((np.concatenate(rows),), (1.0,), chunk=chunk, **common)
    assert (order.steps, order.windows, order.rows_per_epoch) == (together.steps, together.windows, labelled + guessed)
    windows = [order.window_positions(number) for number in range(order.windows)]
    positions = np.concatenate([one.reshape(-1, size) for one in windows])
    assert (positions[:, : shares[0]] % 2 == 0).all()
    assert (positions[:, shares[0] :] % 2 == 1).all()
    for stream, count in enumerate((labelled, guessed)):
        own = np.sort(positions[positions % 2 == stream]) // 2
        assert own.tolist() == list(range(len(own)))
        visits = np.bincount(order.rows_at(2 * own + stream) - 1000 * stream, minlength=count)
        assert visits.max() - visits.min() <= 1


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_a_student_has_as_many_labels_in_every_group_and_a_trail(
    store: FeatureStore, tmp_path: Path, share: float
) -> None:
    spec = student(store, tmp_path, config_of(labelled_share=share))
    known = set(rows_of(store.clips, "train", labelled=True).tolist())
    order = spec.order()
    for number in range(order.windows):
        groups = order.window_rows(number).reshape(-1, 8)
        assert [sum(row in known for row in group) for group in groups.tolist()] == [8 * share] * len(groups)
    assert order.steps == student(store, tmp_path, config_of()).order().steps
    assert len(trails(spec)) == order.steps  # by which resumed and divided runs are compared
    assert len(rank_slots(order.slots, 0, 2)) == 1


def test_without_guesses_there_is_no_share(store: FeatureStore, tmp_path: Path) -> None:
    spec = student(store, tmp_path, config_of(labelled_share=0.5), count=0)
    assert type(spec.order()) is Order


def test_a_guess_counts_its_weight(store: FeatureStore, tmp_path: Path) -> None:
    """The loss is the weighted mean of the two kinds' own, which weights of 1 and 3 tell."""
    found = {}
    for weight in (0.25, 1.0, 3.0):
        torch.manual_seed(0)
        spec = student(store, tmp_path, config_of(labelled_share=0.25, weight=weight))
        task, step = next(passes(spec))
        assert sum(step.counts) == 4 + 12 * weight
        with torch.no_grad():
            task.model.head.bias[:] = torch.tensor([1.0, -1.0])  # type: ignore[union-attr, operator]
        totals = {"clips": torch.tensor(float(sum(step.counts)))}
        found[weight] = sum(task.training_step(task.model, one, totals)[0].item() for one in step.batches)
    sums = {weight: loss * (4 + 12 * weight) for weight, loss in found.items()}
    guesses = (sums[3.0] - sums[1.0]) / 2
    assert sums[0.25] == pytest.approx(sums[1.0] - 0.75 * guesses, rel=1e-5)
    assert guesses > 1


def test_mixed_clips_count_as_their_parts(store: FeatureStore, tmp_path: Path) -> None:
    config = config_of(weight=0.5)
    finetune = replace(config.finetune, augment=AugmentConfig(mixup_p=1.0, mixup_alpha=1.0))
    task, step = next(passes(student(store, tmp_path, replace(config, finetune=finetune))))
    rows = np.concatenate([task.order.window_rows(slot)[:8] for slot in range(2)])
    guessed = np.isin(rows, rows_of(store.clips, "train", labelled=False))
    weights = np.where(guessed, 0.5, 1.0)
    drawn = [one.drawn for one in step.batches]
    counted, mix = (torch.cat([one[name] for one in drawn]).numpy() for name in ("counted", "mixup_weight"))
    partner = np.concatenate([one["mixup_partner"].numpy() + 8 * number for number, one in enumerate(drawn)])
    np.testing.assert_allclose(counted, mix * weights + (1 - mix) * weights[partner], rtol=1e-5)
    assert guessed.any()
    assert not guessed.all()


def test_the_probe_of_the_first_head_weighs_alike(store: FeatureStore, tmp_path: Path) -> None:
    spec = student(store, tmp_path, config_of(labelled_share=0.25, weight=0.5))
    weights, guessed = probe_weights(spec), spec.pseudo_rows
    labelled = rows_of(store.clips, "train", labelled=True)
    assert weights[guessed].sum() / weights[labelled].sum() == pytest.approx(0.5 * 0.75 / 0.25)
    assert max(weights[guessed].max(), weights[labelled].max()) == 1
    assert (probe_weights(student(store, tmp_path, config_of())) == 1).all()


def test_they_are_in_the_students_key_alone(clips: pa.Table) -> None:
    plain, other = (
        Plan(config_of(**settings), clips, Folder("/nowhere"), "evaluate").nodes
        for settings in ({}, {"weight": 0.5, "labelled_share": 0.5})
    )
    assert {name for name in plain if plain[name].key != other[name].key} == {"student", "evaluate"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labelled_share": 0.3}, r"labelled_share = 0\.3 must be a multiple of 1/8"),
        ({"labelled_share": 1.0}, r"labelled_share = 1\.0 must lie in \(0, 1\)"),
        ({"weight": 0.0}, r"weight = 0\.0 must be positive"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**settings)
