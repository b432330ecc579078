"""The CNN baseline's budget: steps by FLOPs, which cost no more than fine-tuning, and a way to leave it out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.config import Config, EvaluateConfig
from raymae.config.recipes import RECIPES
from raymae.features.store import FeatureStore
from raymae.models import build_classifier
from raymae.pipeline.dry_run.cost import classifier_flops, cnn_flops, finetune_flops
from raymae.pipeline.plan.cnn_steps import cnn_steps
from raymae.pipeline.plan.estimate import estimate
from raymae.pipeline.plan.plan import Plan
from raymae.pipeline.plan.sizes import size_lines
from raymae.storage.folder import Folder
from tests.support.training import TINY


def nodes(config: Config, clips: pa.Table) -> dict[str, str]:
    return {name: node.key for name, node in Plan(config, clips, Folder("/nowhere"), "evaluate").nodes.items()}


def table(labelled: int, pool: int) -> pa.Table:
    """Labelled training clips of ten classes, and clips of the pool."""
    count = labelled + pool
    columns = {
        "scene_label": [f"scene {number % 10}" for number in range(labelled)] + [None] * pool,
        "split": ["train"] * labelled + ["pool"] * pool,
        "weight": [1.0] * count,
    }
    return pa.table(columns)


@pytest.mark.parametrize("name", ["synthetic", "small", "audiomae", "paper_dcase"])
@pytest.mark.parametrize("labelled", [70, 1000])
def test_by_default_it_costs_no_more_than_fine_tuning(name: str, labelled: int) -> None:
    config = replace(RECIPES[name](), evaluate=EvaluateConfig())
    finetune, steps = config.finetune, cnn_steps(config, table(labelled, 0))
    most = finetune.epochs * labelled / finetune.global_batch_size
    ours = cnn_flops(config.audio, finetune, config.evaluate.cnn, 10)
    whole = classifier_flops(config.audio, config.model, finetune)
    assert 1 <= steps <= most
    assert steps * ours <= most * whole
    # the most that is possible, but for the part of a step
    assert steps + 1 > most or (steps + 1) * ours > most * whole


@given(labelled=st.integers(1, 500), pool=st.integers(0, 3000), most=st.integers(1, 400))
def test_it_takes_no_more_clips_than_pre_training_and_fine_tuning(labelled: int, pool: int, most: int) -> None:
    config = replace(RECIPES["small"](), evaluate=EvaluateConfig(cnn_most_steps=most))
    finetune, steps = config.finetune, cnn_steps(config, table(labelled, pool))
    clips = config.pretrain.epochs * (labelled + pool) + finetune.epochs * labelled
    batch = finetune.global_batch_size
    assert 1 <= steps <= most
    assert steps * batch <= clips
    assert steps == most or (steps + 1) * batch > clips
    elsewhere = replace(config, finetune=replace(finetune, init_from="runs/pretrain"))
    assert cnn_steps(elsewhere, table(labelled, pool)) == most


def test_flops_of_a_cnn_are_those_of_its_convolutions() -> None:
    """By hand, from the shapes of a network's own weights and outputs."""
    import torch
    from torch import nn

    config = TINY
    network = build_classifier(config.audio, config.model, config.finetune, 3, cnn="test_resnet").eval()
    found = [0.0]

    def count(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        places = output.numel() // output.shape[1]
        found[0] += 2 * places * module.weight.numel()  # type: ignore[union-attr, operator]

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert getattr(module, "groups", 1) == 1
            module.register_forward_hook(count)
    network(torch.zeros(1, config.audio.n_frames, config.audio.n_mels))
    assert cnn_flops(config.audio, config.finetune, "test_resnet", 3) == pytest.approx(3 * found[0])


def test_a_classifiers_flops_are_those_of_all_that_is_encoded() -> None:
    config = RECIPES["small"]()
    finetune, model, audio = config.finetune, config.model, config.audio
    half = audio.n_frames // 2
    assert classifier_flops(audio, model, finetune) == 2 * 2 * finetune_flops(model, finetune, half, audio.n_mels)
    plain = replace(finetune, with_raw=False, segment_seconds=None)
    assert classifier_flops(audio, model, plain) == finetune_flops(model, plain, audio.n_frames, audio.n_mels)


def test_its_own_steps_count_in_its_key_alone(clips: pa.Table) -> None:
    plain, other = (nodes(replace(TINY, evaluate=EvaluateConfig(cnn_steps=steps)), clips) for steps in (None, 5))
    assert {name for name in plain if plain[name] != other[name]} == {"cnn", "evaluate"}
    assert cnn_steps(replace(TINY, evaluate=EvaluateConfig(cnn_steps=5, cnn_most_steps=3)), clips) == 5
    # and pre-training doesn't count in it
    longer = nodes(replace(TINY, pretrain=replace(TINY.pretrain, epochs=9)), clips)
    assert longer["cnn"] == plain["cnn"]


def test_the_plan_names_its_steps_and_how_to_leave_it_out(clips: pa.Table, store: FeatureStore) -> None:
    plan = Plan(TINY, clips, Folder("/nowhere"), "evaluate")
    spec = replace(plan.spec("cnn"), store=store)
    assert spec.steps == spec.order().steps
    assert estimate(plan)["cnn"].endswith("; --evaluate.baselines svm svm_robust leaves it out")
    assert f"cnn: {spec.steps} steps of test_resnet" in size_lines(plan)
    without = replace(TINY, evaluate=EvaluateConfig(baselines=("svm", "svm_robust")))
    assert "cnn" not in nodes(without, clips)
