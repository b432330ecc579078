"""The table of stages: what it promises of every row, and a stage added by a row, its key inputs and its body."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest

from raymae.config import RANDOM, ModelConfig, leaves, to_dict
from raymae.config.stages import CLASSIFIERS, STAGES, Kind, Stage, Target, place, requires, round_name, turn_of
from raymae.config.unlabelled import Unlabelled
from raymae.features.store import FeatureStore
from raymae.pipeline.bodies import BODIES
from raymae.pipeline.console import print_plan
from raymae.pipeline.in_process import InProcess
from raymae.pipeline.plan.keys import INPUTS, LATER, Asked, Keys, model_settings
from raymae.pipeline.plan.plan import Node, Plan
from raymae.pipeline.reports.reporter import reports, stage_settings
from raymae.pipeline.run import RUNNERS
from raymae.storage.folder import Folder
from raymae.storage.range_cache import RangeCache
from raymae.training.run_stage import TASKS
from tests.support.training import TINY


def test_every_stage_has_its_inputs_and_its_body() -> None:
    assert set(INPUTS) == set(STAGES)
    for name, stage in STAGES.items():
        bodies = [stage.kind in TASKS, name in BODIES, name in RUNNERS]
        assert sum(bodies) == 1, f"{name} has {sum(bodies)} bodies"
    assert set(TASKS) == set(get_args(Kind))


def test_stages_need_earlier_ones_and_targets_exist() -> None:
    order = list(STAGES)
    for name, stage in STAGES.items():
        assert all(order.index(needed) < order.index(name) for needed in stage.needs)
    assert set(get_args(Target)) <= set(STAGES)
    assert {stage.use for stage in STAGES.values() if stage.use} == set(get_args(Unlabelled))
    assert all(STAGES[name].kind for name in CLASSIFIERS)
    assert requires("register", "prepare")
    assert not requires("pretrain", "finetune")


def test_rounds_run_one_after_the_other() -> None:
    names = [round_name(stage, turn) for turn in (1, 2, 11) for stage in ("pseudo_label", "student")]
    assert [turn_of(name) for name in names[2:4]] == [("pseudo_label", 2), ("student", 2)]
    assert turn_of("finetune_2") == ("finetune_2", 1)
    assert sorted(reversed([*names, "finetune", "evaluate"]), key=place) == ["finetune", *names, "evaluate"]


def test_the_chunks_of_pre_trainings_shuffle_are_part_of_its_key_alone(clips: pa.Table) -> None:
    scratch = replace(TINY, finetune=replace(TINY.finetune, init_from=RANDOM))
    for config, changed in ((TINY, "pretrain"), (scratch, None)):
        other = replace(config, data=replace(config.data, shuffle_chunk=2))
        nodes, others = (Plan(one, clips, Folder("/nowhere"), "finetune").nodes for one in (config, other))
        assert all(nodes[name].key == others[name].key for name in nodes if changed is None or name == "prepare")
        assert changed is None or nodes[changed].key != others[changed].key


def test_a_stage_is_a_row_its_inputs_and_its_body(
    monkeypatch: pytest.MonkeyPatch, store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def inputs(keys: Keys, node: Asked) -> dict[str, Any]:
        return {"clips": keys.fingerprint(["train"]), "prepare": node.keys["prepare"]}

    def body(plan: Plan, node: Node, reader: Any) -> dict[str, Any]:
        node.artifact.write_json("clips.json", len(plan.clips))
        return {"clips": len(plan.clips)}

    row = Stage(does="clips counted", needs=("prepare",), sections=("data",), reports=("clips.json",))
    monkeypatch.setitem(STAGES, "count", row)
    monkeypatch.setitem(INPUTS, "count", inputs)
    monkeypatch.setitem(BODIES, "count", body)

    plan = Plan(TINY, store.clips, Folder(str(tmp_path)), "count")  # type: ignore[arg-type]
    assert list(plan.nodes) == ["prepare", "count"]
    assert plan.to_do == ["prepare", "count"]
    node = plan.nodes["count"]
    assert InProcess(plan).make(node)
    assert node.artifact.result()["clips"] == len(store.clips)
    again = Plan(TINY, store.clips, plan.storage, "count")  # type: ignore[arg-type]
    assert again.nodes["count"].reused
    assert reports(node, {}) == ("clips.json",)
    assert all(name.startswith("data.") for name in stage_settings(TINY, "count"))
    monkeypatch.setattr(Plan, "to_do", [])  # no estimate
    print_plan(again)
    assert f"count    {node.key}  reused  clips counted" in capsys.readouterr().out


def test_a_nodes_cache_reaches_the_workers_and_is_part_of_no_key(clips: pa.Table, tmp_path: Path) -> None:
    storage = Folder(str(tmp_path))
    compute = replace(TINY.compute, cache=str(tmp_path / "nvme"), cache_gb=2.5)
    plain, cached = (Plan(one, clips, storage, "finetune") for one in (TINY, replace(TINY, compute=compute)))
    assert {name: node.key for name, node in cached.nodes.items()} == {n: node.key for n, node in plain.nodes.items()}
    store = pickle.loads(pickle.dumps(cached.spec("finetune"))).store
    assert (store.tables.folder, store.cache) == (compute.cache, RangeCache(str(tmp_path / "nvme"), 2_500_000_000))
    assert plain.store.cache is None


def test_later_settings_of_a_model_change_a_key_only_where_they_are_set() -> None:
    """Artifacts that were made before there was a setting are found by the same key."""
    before = leaves(model_settings(ModelConfig()))
    every = leaves(to_dict(ModelConfig()))
    later = {".".join(filter(None, place)) for place in LATER}
    assert set(before) == set(every) - later
    set_now = model_settings(ModelConfig(mask_strategy="inverse_block", mask_block=3))
    assert set_now["mask_block"] == 3
    assert "mask_block_surplus" not in set_now
