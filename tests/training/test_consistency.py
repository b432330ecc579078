"""Consistency training: weights by hand, mixing groups of both kinds, exact resume, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from raymae.cli.arguments import parse
from raymae.config import AugmentConfig, Config, ConsistencyConfig, FinetuneConfig
from raymae.datasets.rows import unlabelled_rows
from raymae.features.store import FeatureStore
from raymae.inference.classifier import read_classifier
from raymae.pipeline.plan.plan import Plan
from raymae.storage.events import read_events
from raymae.storage.folder import Folder
from raymae.training.parallel import RunningStatistics
from raymae.training.run_stage import build_task, run_stage
from raymae.training.spec import labelled_rows
from raymae.training.tasks.consistency_weights import METHODS, FixMatch, FreeMatch, SoftMatch, consistency_loss
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession
from tests.support.training import EVERYTHING, RESPONSES, TINY, losses, make_spec, train, train_in_two

STRONG = AugmentConfig(eq_p=0.8, mixstyle_p=0.5, freq_mask_param=8, time_mask_param=16)
SETTINGS = ConsistencyConfig(method="freematch", epochs=4, ratio=2, momentum=0.8, strong=STRONG)
CONFIG = replace(TINY, consistency=SETTINGS)
GROUPS: dict[str, Any] = {"mixing_group": 4, "micro_batch_size": 4}
"""Two mixing groups a step, each a forward pass."""


def setting(config: Config = CONFIG, **changes: Any) -> Config:
    return replace(config, consistency=replace(config.consistency, **changes))


def probabilities(*first: float) -> Tensor:
    """The probabilities of two classes, given the first's."""
    values = torch.tensor(first)
    return torch.stack([values, 1 - values], 1)


def weighed(weigh: nn.Module, given: Tensor) -> Tensor:
    """The weights of clips that all count."""
    found: Tensor = weigh(given, torch.ones(len(given)))
    return found


# By hand: two classes, momentum 0.5, one pass of two clips a step ---------------------------------------------


def half(method: str) -> ConsistencyConfig:
    return ConsistencyConfig(method=method, momentum=0.5)  # type: ignore[arg-type]


def test_fixmatch_by_hand() -> None:
    """Sohn et al. 2020: 1 where max p >= tau."""
    weigh = FixMatch(2, ConsistencyConfig(confidence_threshold=0.8))
    for given, expected in (((0.9, 0.6), [1, 0]), ((0.2, 0.5), [1, 0]), ((0.79, 0.19), [0, 1])):
        assert weighed(weigh, probabilities(*given)).tolist() == expected
    assert float(weigh.threshold) == pytest.approx(0.8)


def test_freematch_by_hand() -> None:
    """Wang et al. 2023: tau and p start at 1/2; tau(c) = p(c) / max p * tau."""
    weigh = FreeMatch(2, half("freematch"))
    assert weigh.thresholds.tolist() == [0.5, 0.5]
    assert weighed(weigh, probabilities(0.9, 0.6)).tolist() == [1, 1]
    # confidences (0.9 + 0.6) / 2 = 0.75, probabilities (0.75, 0.25), predictions (1, 0); each halfway from 0.5
    weigh.move()
    assert float(weigh.tau) == pytest.approx(0.625)
    assert weigh.classes.tolist() == pytest.approx([0.625, 0.375])
    assert weigh.guesses.tolist() == pytest.approx([0.75, 0.25])
    assert weigh.thresholds.tolist() == pytest.approx([0.625, 0.375])
    assert weighed(weigh, probabilities(0.6, 0.2)).tolist() == [0, 1]
    # confidences 0.7, probabilities (0.4, 0.6), predictions (0.5, 0.5)
    weigh.move()
    assert float(weigh.threshold) == pytest.approx(0.6625)
    assert weigh.classes.tolist() == pytest.approx([0.5125, 0.4875])
    assert weigh.guesses.tolist() == pytest.approx([0.625, 0.375])
    assert weigh.thresholds.tolist() == pytest.approx([0.6625, 0.4875 / 0.5125 * 0.6625])
    assert weighed(weigh, probabilities(0.66, 0.36)).tolist() == [0, 1]  # 0.64 is above 0.6302


def test_fairness_by_hand() -> None:
    """Wang et al. 2023, self-adaptive fairness, at the third step of the example above."""
    weigh = FreeMatch(2, half("freematch"))
    for given in ((0.9, 0.6), (0.6, 0.2)):
        weighed(weigh, probabilities(*given))
        weigh.move()
    logits = probabilities(0.8, 0.4, 0.9).log()
    # a = SumNorm(0.5125 / 0.625, 0.4875 / 0.375) = (0.82, 1.3) / 2.12; b of the first two: (1.2, 0.8) / 2
    expected = (0.82 * np.log(0.6) + 1.3 * np.log(0.4)) / 2.12
    # in the second group the first alone: b = (1) for the only class that is predicted
    found = weigh.fairness(torch.stack([logits, logits]), torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    assert found.tolist() == [pytest.approx(expected, rel=1e-5), pytest.approx(0, abs=1e-6)]
    logits.requires_grad_()
    weigh.fairness(logits[None], torch.zeros(1, 3)).sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("n_sigma", [None, 1.0])
def test_softmatch_by_hand(n_sigma: float | None) -> None:
    """Chen et al. 2023: exp(-(c - mean)^2 / (2 variance)) below the mean, of aligned confidences c; in the authors'
    code the variance is divided by n_sigma^2 = 4."""
    weigh = SoftMatch(2, replace(half("softmatch"), n_sigma=n_sigma) if n_sigma else half("softmatch"))
    divisor = 1 if n_sigma else 4
    assert weighed(weigh, probabilities(0.9, 0.6)).tolist() == [1, 1]
    # mean 0.75, unbiased variance 2 * 0.15^2 = 0.045: halfway from 0.5 and 1
    weigh.move()
    assert float(weigh.threshold) == pytest.approx(0.625)
    assert float(weigh.variance) == pytest.approx(0.5225)
    assert weigh.classes.tolist() == pytest.approx([0.625, 0.375])
    # aligned: (0.6 / 0.625, 0.4 / 0.375) = (0.96, 1.0667), confidence 0.526316; (0.32, 2.1333), 0.869565
    found = weighed(weigh, probabilities(0.6, 0.2)).tolist()
    assert found == pytest.approx([np.exp(-((0.526316 - 0.625) ** 2) / 1.045 * divisor), 1], rel=1e-5)
    # mean 0.697941, variance (0.869565 - 0.526316)^2 / 2 = 0.058910
    weigh.move()
    assert float(weigh.mean) == pytest.approx(0.661470, abs=1e-6)
    assert float(weigh.variance) == pytest.approx(0.290705, abs=1e-6)
    # aligned (0.5 / 0.5125, 0.5 / 0.4875), confidence 0.5125
    found = weighed(weigh, probabilities(0.5, 0.5)).tolist()
    assert found == pytest.approx([np.exp(-((0.5125 - 0.661470) ** 2) / 0.581410 * divisor)] * 2, rel=1e-5)


def test_the_loss_is_the_sum_over_all_clips() -> None:
    logits = probabilities(0.5, 0.25).log()
    found = consistency_loss(logits, torch.tensor([0, 1]), torch.tensor([1.0, 0.5]))
    assert float(found) == pytest.approx(-(np.log(0.5) + 0.5 * np.log(0.75)))


@pytest.mark.parametrize("method", METHODS)
def test_clips_that_do_not_count_have_no_weight_and_move_nothing(method: str) -> None:
    given = torch.softmax(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), 1)
    config = ConsistencyConfig(method=method)  # type: ignore[arg-type]
    one, other = METHODS[method](3, config), METHODS[method](3, config)
    counted = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    weights = one(given, counted)
    assert not weights[counted == 0].any()
    assert torch.equal(weights[counted == 1], weighed(other, given[counted == 1]))
    for weigh in (one, other):
        RunningStatistics(weigh, 1, range(1)).merge()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)


@pytest.mark.parametrize("method", METHODS)
def test_passes_of_a_step_count_as_one(method: str) -> None:
    given = torch.softmax(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), 1)
    config = ConsistencyConfig(method=method)  # type: ignore[arg-type]
    whole, parts = METHODS[method](5, config), METHODS[method](5, config)
    for _ in range(3):
        expected = weighed(whole, given)
        assert torch.equal(torch.cat([weighed(parts, part) for part in given.split(4)]), expected)
        for one in (whole, parts):
            RunningStatistics(one, 1, range(1)).merge()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value)


@pytest.mark.parametrize("kind", [FreeMatch, SoftMatch])
def test_a_step_that_is_not_finite_changes_no_statistics(kind: Any) -> None:
    weigh = kind(2, half("freematch"))
    before = {name: value.clone() for name, value in weigh.state_dict().items()}
    weighed(weigh, torch.full((3, 2), float("nan")))
    weigh.move()
    assert all(torch.equal(value, before[name]) for name, value in weigh.state_dict().items())
    weighed(weigh, probabilities(0.9, 0.6))
    weigh.move()
    assert any(not torch.equal(value, before[name]) for name, value in weigh.state_dict().items())


# The stage -----------------------------------------------------------------------------------------------------------


def test_every_mixing_group_has_both_in_fixed_shares(store: FeatureStore, tmp_path: Path) -> None:
    config = replace(CONFIG, finetune=replace(TINY.finetune, mixing_group=4))
    spec = make_spec(store, tmp_path, "consistency", config)
    labelled, unlabelled = set(labelled_rows(spec)[0].tolist()), set(unlabelled_rows(store.clips).tolist())
    used: set[int] = set()
    for _, groups in BareSession(store, spec.artifact).groups(spec.order(), 0):
        assert len(groups) == spec.slots == 2
        for group in groups:
            assert len(group.rows) == 4 + 8
            assert set(group.rows[:4].tolist()) <= labelled
            assert set(group.rows[4:].tolist()) <= unlabelled
            used |= set(group.rows.tolist())
    assert used == labelled | unlabelled
    assert set(store.clips["split"].take(sorted(used)).to_pylist()) == {"train"}


@pytest.mark.parametrize("method", METHODS)
def test_one_worker_and_two_compute_the_same(store: FeatureStore, tmp_path: Path, method: str) -> None:
    config = replace(
        TINY,
        finetune=replace(TINY.finetune, drop_path=0.3, augment=replace(EVERYTHING, mixup_p=0.8), **GROUPS),
        consistency=ConsistencyConfig(method=method, epochs=3, ratio=2, strong=STRONG),  # type: ignore[arg-type]
    )
    spec = make_spec(store, tmp_path, "consistency", config, responses=RESPONSES)
    one, two = losses(spec, 1), losses(spec, 2)
    assert one == two
    assert len(set(one.values())) == len(one) == spec.slots * spec.order().steps


@pytest.mark.parametrize("settings", [{}, {"method": "softmatch", "teacher": "ema", "start": "pretrain"}])
def test_resuming_from_a_checkpoint_is_exact(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    config = setting(epochs=4, **settings)
    whole = make_spec(store, tmp_path / "whole", "consistency", config)
    undisturbed = train(whole)
    resumed = train_in_two(make_spec(store, tmp_path / "parts", "consistency", config), monkeypatch, 7)
    assert {"weighting.classes"} < undisturbed.keys() == resumed.keys()
    assert not torch.equal(undisturbed["weighting.classes"], torch.full((2,), 0.5, dtype=torch.float64))
    for name, value in undisturbed.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("teacher", ["self", "ema"])
def test_the_weak_views_have_no_gradient(store: FeatureStore, tmp_path: Path, precision: Any, teacher: Any) -> None:
    config = setting(method="softmatch", teacher=teacher)
    config = replace(config, finetune=replace(config.finetune, precision=precision))
    spec = make_spec(store, tmp_path, "consistency", config)
    trainer = Trainer.start(build_task(spec), BareSession(store, spec.artifact), spec.artifact)
    trainer._take(trainer._steps(), 0.5)
    metrics = trainer.step.read()
    assert all(p.grad is not None and p.grad.any() for n, p in trainer.model.named_parameters() if "head" in n)
    assert all(p.grad is not None for p in trainer.model.parameters() if p.requires_grad)
    assert all(module.training for module in trainer.model.modules())
    assert metrics["loss"] == pytest.approx(metrics["supervised_loss"] + metrics["unsupervised_loss"], rel=1e-5)
    assert 0 < metrics["mask_share"] <= 1
    assert metrics["threshold"] == pytest.approx(0.5)


LEARNS = replace(TINY, seed=1)
"""Of seeds 0 to 11, FreeMatch learns with all but 0, whose few labelled clips let it agree with its own mistakes."""


@pytest.fixture(scope="module")
def trained(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    """A pre-training and a fine-tuning from it."""
    root = tmp_path_factory.mktemp("trained")
    config = replace(LEARNS, pretrain=replace(TINY.pretrain, epochs=3), finetune=replace(TINY.finetune, epochs=30))
    pretrained = make_spec(store, root / "pretrain", config=config)
    finetuned = make_spec(store, root / "finetune", "finetune", config, encoder=pretrained.artifact)
    for spec in (pretrained, finetuned):
        run_stage(spec, BareSession(store, spec.artifact))
    return {"pretrain": pretrained.artifact, "finetune": finetuned.artifact}


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_two_tones(store: FeatureStore, tmp_path: Path, trained: dict[str, Folder], method: Any) -> None:
    # no Freq-MixStyle: it would turn one tone into the other
    strong = AugmentConfig(eq_p=0.5, freq_mask_param=4, time_mask_param=16)
    settings = ConsistencyConfig(method=method, epochs=15, ratio=2, strong=strong)
    spec = make_spec(
        store, tmp_path, "consistency", replace(LEARNS, consistency=settings), classifier=trained["finetune"]
    )
    run_stage(spec, BareSession(store, spec.artifact))
    found = spec.artifact.result()
    assert found["metrics"]["val/macro_accuracy"] > 0.9
    assert found["steps"] == spec.order().steps
    assert read_classifier(spec.artifact).class_names == ["high", "low"]
    names = {name for event in read_events(spec.artifact) for name in event["metrics"]}
    assert {"loss", "supervised_loss", "unsupervised_loss", "mask_share", "threshold"} <= names
    assert ("fairness_loss" in names) == (method == "freematch")


def test_it_is_initialised_from_the_whole_teacher(
    store: FeatureStore, tmp_path: Path, trained: dict[str, Folder]
) -> None:
    weights = load_tensors(trained["finetune"].read_bytes("model.safetensors"))
    spec = make_spec(store, tmp_path, "consistency", CONFIG, classifier=trained["finetune"])
    network = build_task(spec).network  # type: ignore[attr-defined]
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    spec = make_spec(store, tmp_path, "consistency", setting(start="pretrain"), encoder=trained["pretrain"])
    network = build_task(spec).network  # type: ignore[attr-defined]
    assert not torch.equal(network.head.weight, weights["head.weight"])


def test_without_unlabelled_clips_it_trains_on_the_labelled_ones(store: FeatureStore, tmp_path: Path) -> None:
    labels = store.clips["scene_label"].to_pandas().fillna("low")
    given = FeatureStore(store.folder, store.shards)
    index = store.clips.schema.get_field_index("scene_label")
    given.__dict__["clips"] = store.clips.set_column(index, "scene_label", pa.array(labels, pa.string()))
    spec = make_spec(given, tmp_path, "consistency", setting(epochs=2))
    run_stage(spec, BareSession(given, spec.artifact))
    metrics = spec.artifact.result()["metrics"]
    assert "unsupervised_loss" not in metrics
    assert metrics["loss"] == pytest.approx(metrics["supervised_loss"])


# Settings and plan ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConsistencyConfig(method="mixmatch"), "must be one of fixmatch, freematch, softmatch"),
        (lambda: ConsistencyConfig(ratio=0), r"consistency\.ratio = 0"),
        (lambda: ConsistencyConfig(momentum=0.9), r"consistency\.momentum = 0\.9 has no effect with .* = fixmatch"),
        (lambda: ConsistencyConfig(method="softmatch", confidence_threshold=0.9), "only with fixmatch"),
        (
            lambda: ConsistencyConfig(strong=AugmentConfig(roll_p=1.0)),
            r"consistency\.strong\.roll_p = 1\.0 has no effect",
        ),
        (lambda: Config(unlabelled=("consistency", "consistency")), "names one twice"),
        (lambda: Config(unlabelled=("labels",)), "must be one of pseudo_labels, consistency"),
        (
            lambda: Config(unlabelled=("consistency",), finetune=FinetuneConfig(labels="multi")),
            r"unlabelled = consistency is for single-label clips",
        ),
        (lambda: Config(consistency=ConsistencyConfig(teacher="ema")), r"set finetune\.ema_decay"),
        (
            lambda: Config(consistency=ConsistencyConfig(micro_batch_size=5)),
            "must hold a mixing group of fine-tuning, which has 8 clips",
        ),
    ],
)
def test_wrong_settings_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_the_uses_on_the_command_line() -> None:
    assert parse(["small"]).unlabelled == ("pseudo_labels",)
    assert parse(["small", "--unlabelled", "pseudo_labels", "consistency"]).unlabelled[-1] == "consistency"
    config = parse(["small", "--unlabelled", "--consistency.method", "fixmatch"])
    assert (config.unlabelled, config.consistency.method) == ((), "fixmatch")


def plan_of(config: Config, clips: pa.Table, target: Any = "register") -> Plan:
    return Plan(config, clips, Folder("/nowhere"), target)


@pytest.mark.parametrize(
    ("unlabelled", "stages"),
    [
        ((), []),
        (("pseudo_labels",), ["student"]),
        (("consistency",), ["consistency"]),
        (("pseudo_labels", "consistency"), ["student", "consistency"]),
        (("consistency", "pseudo_labels"), ["consistency", "student"]),
    ],
)
def test_each_use_of_unlabelled_clips_is_evaluated_and_the_last_is_final(
    clips: pa.Table, unlabelled: Any, stages: list[str]
) -> None:
    plan = plan_of(replace(CONFIG, unlabelled=unlabelled), clips)
    assert list(plan.classifiers) == ["cnn", "finetune", *stages]
    assert plan.final == list(plan.classifiers)[-1]
    assert ("pseudo_label" in plan.nodes) == ("student" in stages)
    assert list(plan.nodes)[-2:] == ["evaluate", "register"]


def test_keys_depend_on_what_changes_a_result_only(clips: pa.Table) -> None:
    both = replace(CONFIG, unlabelled=("pseudo_labels", "consistency"))
    plan, plain = plan_of(both, clips), plan_of(replace(TINY, unlabelled=("pseudo_labels",)), clips)
    for name in ("prepare", "pretrain", "finetune", "cnn", "pseudo_label", "student"):
        assert plan.nodes[name].key == plain.nodes[name].key
    key = plan.nodes["consistency"].key
    for changes in ({"ratio": 3}, {"method": "softmatch"}, {"start": "pretrain"}, {"strong": AugmentConfig()}):
        assert plan_of(setting(both, **changes), clips).nodes["consistency"].key != key
    fewer = clips.filter(pc.or_(pc.not_equal(clips["split"], "train"), pc.is_valid(clips["scene_label"])))
    assert plan_of(both, fewer).nodes["consistency"].key != key
    other = plan_of(replace(both, pseudo_label=replace(both.pseudo_label, confidence_threshold=0.5)), clips)
    assert other.nodes["consistency"].key == key
    swapped = plan_of(replace(CONFIG, unlabelled=("consistency", "pseudo_labels")), clips)
    assert swapped.nodes["evaluate"].key != plan.nodes["evaluate"].key


def test_what_it_is_initialised_from(clips: pa.Table) -> None:
    plan = plan_of(CONFIG, clips, "consistency")
    assert list(plan.nodes) == ["prepare", "pretrain", "finetune", "consistency"]
    spec = plan.spec("consistency")
    assert (spec.classifier, spec.encoder) == (plan.nodes["finetune"].artifact, None)
    plan = plan_of(setting(start="pretrain"), clips, "consistency")
    assert list(plan.nodes) == ["prepare", "pretrain", "consistency"]
    spec = plan.spec("consistency")
    assert (spec.classifier, spec.encoder) == (None, plan.nodes["pretrain"].artifact)


def test_the_job_needs_unlabelled_single_label_clips(clips: pa.Table) -> None:
    labelled = clips.filter(pc.or_(pc.not_equal(clips["split"], "train"), pc.is_valid(clips["scene_label"])))
    with pytest.raises(ValueError, match="split train has none: leave some scene_label empty"):
        plan_of(CONFIG, labelled, "consistency")
    several = replace(TINY, finetune=replace(TINY.finetune, labels="multi"))
    with pytest.raises(ValueError, match="consistency training is for single-label clips"):
        plan_of(several, clips, "consistency")
    assert plan_of(several, clips).final == "finetune"
