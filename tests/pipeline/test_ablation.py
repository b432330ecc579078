"""What each stage adds: nodes of the plan that an ablation asks for, and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors

from raymae.config import RANDOM, Ablation, Config, DataConfig, EvaluateConfig, PretrainConfig
from raymae.features.store import FeatureStore
from raymae.pipeline.plan.init_weights import find
from raymae.pipeline.plan.plan import Plan, ablated
from raymae.pipeline.run import run_plan
from raymae.storage.folder import Folder, open_storage
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.worker import BareSession
from tests.support.audio_files import write_clips, write_table
from tests.support.training import TINY

OWN_STARTS: tuple[Ablation, ...] = ("scratch", "frozen", "pool", "pool_train")


def asking(config: Config, *names: Ablation, supervised_from: str | None = None) -> Config:
    evaluate = replace(config.evaluate, ablation=names, supervised_from=supervised_from)
    return replace(config, evaluate=evaluate)


def plan_of(config: Config, clips: pa.Table, target: Any = "register") -> Plan:
    return Plan(config, clips, Folder("/nowhere"), target, find(config, Folder("/nowhere"), target))


@pytest.fixture(scope="module")
def classifier(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier of tones, trained from random weights."""
    folder = Folder(str(tmp_path_factory.mktemp("source")))
    config = replace(TINY, finetune=replace(TINY.finetune, epochs=3))
    spec = StageSpec(name="finetune", kind="finetune", config=config, artifact=folder, store=store)
    run_stage(spec, BareSession(store, folder))
    return folder.url


# Without Ray ----------------------------------------------------------------------------------------------------------


@given(names=st.sets(st.sampled_from(OWN_STARTS)), pool_only=st.booleans())
@settings(max_examples=12, deadline=None)
def test_an_ablation_changes_no_other_key_but_those_that_report_it(
    clips: pa.Table, names: set[Ablation], pool_only: bool
) -> None:
    config = replace(TINY, pretrain=replace(TINY.pretrain, pool_only=pool_only))
    plain, asked = plan_of(config, clips), plan_of(asking(config, *sorted(names)), clips)
    own = names.intersection({"pool" if pool_only else "pool_train"})
    for name, node in plain.nodes.items():
        repeats = name not in ("evaluate", "register") or not names
        assert (asked.nodes[name] == node) == repeats
    further = [name for name in asked.nodes if name not in plain.nodes]
    assert {asked.plan_of(name).config for name in further} == {ablated(asked.config, name) for name in names - own}
    assert list(asked.classifiers)[-2:] == ["finetune", "student"]
    assert all(asked.ablation_models[name] == "finetune" for name in own)


@pytest.mark.parametrize(("pool_only", "splits"), [(True, "pool"), (False, "pool and train")])
def test_pre_training_without_a_clip_is_refused(clips: pa.Table, pool_only: bool, splits: str) -> None:
    config = replace(TINY, pretrain=replace(TINY.pretrain, pool_only=pool_only))
    rest = clips.filter(pc.is_in(clips["split"], pa.array(["test", "val"] + ["train"] * pool_only)))
    with pytest.raises(ValueError, match=f"pre-training has no clip.*of {splits},.*data.pool_tables"):
        plan_of(config, rest, "pretrain")


def test_it_is_the_run_that_its_settings_would_be(clips: pa.Table) -> None:
    asked = plan_of(asking(TINY, "scratch", "pool"), clips)
    pool = plan_of(replace(TINY, pretrain=replace(TINY.pretrain, pool_only=True)), clips)
    scratch = plan_of(replace(TINY, finetune=replace(TINY.finetune, init_from=RANDOM)), clips)
    for ablation, other in (("pool", pool), ("scratch", scratch)):
        mine, theirs = asked.nodes[f"finetune_{ablation}"], other.nodes["finetune"]
        assert (mine.key, mine.artifact) == (theirs.key, theirs.artifact)
        assert asked.spec(mine.name).seed() == other.spec("finetune").seed()
        assert asked.spec(mine.name).encoder == other.spec("finetune").encoder
    assert asked.nodes["pretrain_pool"].artifact == pool.nodes["pretrain"].artifact
    assert "pretrain" not in scratch.nodes


def test_a_frozen_encoder_is_that_of_pre_training(store: FeatureStore, tmp_path: Path) -> None:
    asked = Plan(asking(TINY, "frozen"), store.clips, Folder(str(tmp_path)), "evaluate")
    for name in ("pretrain", "finetune_frozen"):
        spec = replace(asked.spec(name), store=store)
        run_stage(spec, BareSession(store, spec.artifact))
    before, after = (
        load_tensors(asked.nodes[name].artifact.read_bytes("model.safetensors"))
        for name in ("pretrain", "finetune_frozen")
    )
    blocks = [name for name in after if name.startswith("encoder.blocks")]
    assert blocks
    assert all(torch.equal(after[name], before[name]) for name in blocks)
    assert after["head.weight"].abs().max() > 1e-3
    assert asked.nodes["finetune_frozen"].artifact.result()["steps"] == 1


def test_a_classifier_of_other_labels_is_a_start_too(clips: pa.Table, classifier: str) -> None:
    asked = plan_of(asking(TINY, "supervised", supervised_from=classifier), clips)
    assert [name for name in asked.nodes if "_supervised" in name] == ["finetune_supervised"]
    encoder = asked.spec("finetune_supervised").encoder
    assert encoder is not None
    assert encoder == asked.given["supervised"].artifact
    assert asked.spec("finetune").encoder == asked.nodes["pretrain"].artifact


def test_random_weights_are_those_of_the_seed(store: FeatureStore, tmp_path: Path) -> None:
    from raymae.training.run_stage import build_task

    config = replace(TINY, finetune=replace(TINY.finetune, init_from=RANDOM))
    spec = Plan(config, store.clips, Folder(str(tmp_path)), "finetune").spec("finetune")
    assert spec.encoder is None
    one, other = (build_task(replace(spec, store=store)).model.state_dict() for _ in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("target", ["prepare", "pretrain", "finetune"])
def test_jobs_without_evaluation_don_t_run_it(clips: pa.Table, target: Any) -> None:
    assert plan_of(asking(TINY, *OWN_STARTS), clips, target).nodes.keys() == plan_of(TINY, clips, target).nodes.keys()


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"ablation": ("pool", "pool")}, "names one twice"),
        ({"ablation": ("all",)}, "must be one of scratch, frozen, supervised, pool, pool_train"),
        ({"ablation": ("supervised",)}, "needs evaluate.supervised_from"),
        ({"supervised_from": "x"}, "has no effect without evaluate.ablation = supervised"),
    ],
)
def test_wrong_settings_are_refused(settings_: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EvaluateConfig(**settings_)


def test_a_pool_is_needed_to_pre_train_on_it_alone(clips: pa.Table) -> None:
    poolless = clips.filter(pa.compute.not_equal(clips["split"], "pool"))
    with pytest.raises(ValueError, match=r"evaluate\.ablation = pool: there is no clip of split pool"):
        plan_of(asking(TINY, "pool"), poolless)


def test_pre_training_has_no_random_start() -> None:
    with pytest.raises(ValueError, match="leave it out"):
        PretrainConfig(init_from=RANDOM)


# With Ray -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ray
def test_every_row_lands_in_the_report(
    tmp_path: Path, classifier: str, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path, write_clips(tmp_path, 60))
    config = replace(
        TINY,
        storage=str(tmp_path / "storage"),
        data=DataConfig(dataset="table", tables=(str(table),)),
        pretrain=replace(TINY.pretrain, epochs=2),
        finetune=replace(TINY.finetune, epochs=4, labels="multi"),  # no student: one group of workers trains all
        evaluate=EvaluateConfig(baselines=(), probe_clips=0),
    )
    config = asking(config, "scratch", "supervised", "pool", "pool_train", supervised_from=classifier)
    storage = open_storage(config.storage)
    result = run_plan(config, "evaluate", storage)
    rows = ["finetune_scratch", "finetune_supervised", "finetune_pool", "finetune"]
    assert list(result["metrics"]) == rows
    said = capsys.readouterr().out
    assert "| MAE on pool alone, fine-tuned" in said
    assert "ablation pool_train: finetune starts from the same, so one row shows both" in said
    evaluation = Folder(result["stages"]["evaluate"]["folder"]).result()
    assert evaluation["ablation"] == {
        **{name: f"finetune_{name}" for name in ("scratch", "supervised", "pool")},
        "pool_train": "finetune",
    }
    weights = {
        name: load_tensors(Folder(result["stages"][name]["folder"]).read_bytes("model.safetensors"))["head.weight"]
        for name in rows
    }
    assert all(not np.array_equal(weights["finetune"], weights[name]) for name in rows[:3])
    # one that asks for less finds what it needs
    fewer = run_plan(replace(asking(config, "pool"), dry_run=True), "evaluate", storage)["plan"]
    assert [name for name, reused in fewer.items() if not reused] == ["evaluate"]
