"""`benchmark transfer`: the configurations of its runs, and its tables from made-up scores."""

import json
from dataclasses import replace

import numpy as np
import pytest

from raymae.benchmark.studies.transfer import (
    NETWORKS,
    SVM_ROWS,
    WITHOUT,
    Scores,
    add_scores,
    changed_recipe,
    conclude,
    pairs,
    run_config,
    scores_figure,
)
from raymae.config.recipes import small
from raymae.evaluation.png import png

SPLITS = ("test_seen", "test_unseen")


def evaluation(values: dict[str, float]) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics of an evaluation of some models; each split scores 0.1 less than the one before."""
    return {
        name: {split: {"macro_accuracy": value - 0.1 * k, "clips": 9} for k, split in enumerate(("val", *SPLITS))}
        for name, value in values.items()
    }


@pytest.fixture
def scores() -> Scores:
    found: dict[str, dict[str, list[float]]] = {}
    for table in range(3):
        svms = {name: 0.5 + 0.01 * k for k, name in enumerate(SVM_ROWS)}
        networks = {name: 0.55 + 0.05 * k + 0.01 * table for k, name in enumerate(NETWORKS)}
        add_scores(found, evaluation(svms | networks), "")
        add_scores(found, evaluation({name: value - 0.02 for name, value in networks.items()}), WITHOUT)
    return found


def test_every_row_has_a_score_per_table_on_test_splits_only(scores: Scores) -> None:
    assert set(scores) == {*SVM_ROWS, *NETWORKS, *(f"{name}{WITHOUT}" for name in NETWORKS)}
    for values in scores.values():
        assert set(values) == set(SPLITS)
        assert {len(found) for found in values.values()} == {3}


def test_differences_are_paired_by_table(scores: Scores) -> None:
    rows = pairs(scores)
    assert ("finetune", "cnn") in rows.values()  # the best baseline without pre-training and unlabelled clips
    assert ("student", f"student{WITHOUT}") in rows.values()
    result = conclude(scores, ["a", "b", "c"], 1.0)
    for name, (row, other) in rows.items():
        for split in SPLITS:
            expected = np.subtract(scores[row][split], scores[other][split])
            np.testing.assert_allclose(result.values["differences"][name][split], expected)
    assert "MAE, fine-tuned − " in result.text
    assert "+0.020 ± 0.000 (3)" in result.text


def test_single_table_has_no_deviation_and_saves_as_json(scores: Scores, tmp_path) -> None:  # type: ignore[no-untyped-def]
    one = {row: {split: values[:1] for split, values in found.items()} for row, found in scores.items()}
    result = conclude(one, ["a"], 1.0)
    assert "±" not in result.text
    result.save(str(tmp_path / "transfer.json"))
    assert json.loads((tmp_path / "transfer.json").read_text())["scores"] == one


def test_figure_has_a_panel_per_split(scores: Scores) -> None:
    figure = scores_figure(scores)
    assert len(figure.axes) == 2
    assert len(png(figure)) > 10_000


def test_runs_share_pre_training_and_differ_in_generalisation() -> None:
    recipe = small()
    some = {"pool": ("pool.csv",), "baselines": False}
    generalised, plain = (run_config(recipe, "a.csv", generalised=value, **some) for value in (True, False))
    other = run_config(recipe, "b.csv", generalised=True, **some)
    assert generalised.pretrain == plain.pretrain == other.pretrain
    assert generalised.pretrain.pool_only
    assert generalised.finetune == recipe.finetune
    augment = plain.finetune.augment
    assert (augment.eq_p, augment.mixstyle_p, plain.finetune.subtract_band_mean) == (0, 0, False)
    assert plain.consistency.strong.eq_p == plain.consistency.strong.mixstyle_p == 0
    assert augment.crop_seconds == recipe.finetune.augment.crop_seconds
    assert plain.evaluate.baselines == ("cnn",)
    with_svms = run_config(recipe, "a.csv", generalised=True, pool=("pool.csv",), baselines=True)
    assert with_svms.evaluate.baselines == (*SVM_ROWS, "cnn")
    assert replace(with_svms, evaluate=generalised.evaluate) == generalised


def test_settings_change_the_recipe_and_are_validated() -> None:
    assert changed_recipe("small", ["pretrain.epochs=562", "finetune.balance=class"]).finetune.balance == "class"
    for settings, message in ((["finetune.epochz=3"], "epochz"), (["finetune.epochs"], "FIELD=VALUE")):
        with pytest.raises(ValueError, match=message):
            changed_recipe("small", settings)
    with pytest.raises(ValueError, match="unknown recipe"):
        changed_recipe("smal", [])
