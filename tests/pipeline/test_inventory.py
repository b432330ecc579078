"""What a storage holds, whether it is sound, what can go, and which models have learnt from a clip."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raymae.cli.jobs import JOBS
from raymae.cli.main import start
from raymae.config import Config, DataConfig, PseudoLabelConfig
from raymae.pipeline.in_process import InProcess
from raymae.pipeline.inventory import DAY, damage, remove, take, unreferenced
from raymae.pipeline.plan.plan import Plan
from raymae.pipeline.run import record
from raymae.storage.folder import Folder, open_storage
from raymae.training.state.lineage import models_trained_on
from tests.support.audio_files import make_store, write_clips, write_table
from tests.support.training import TINY


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A storage with the stages of a run, made without Ray."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("recordings")
    table = write_table(folder, write_clips(folder, 60))
    config = replace(
        TINY,
        recipe="tiny",
        data=DataConfig(dataset="table", tables=(str(table),)),
        pretrain=replace(TINY.pretrain, epochs=1, warmup_epochs=0, probe_clips=0),
        finetune=replace(TINY.finetune, epochs=2, warmup_epochs=0),
        pseudo_label=PseudoLabelConfig(confidence_threshold=None, coverage=0.5),
        evaluate=replace(TINY.evaluate, baselines=(), probe_clips=0),
    )
    storage = open_storage(str(tmp_path_factory.mktemp("storage")))
    plan = new_plan(config, storage)
    store = make_store(Path(storage.path()), plan.clips)
    sizes = store.shards.sizes()
    shards = [{**shard, "size": sizes[shard["name"]]} for shard in store.manifest["shards"]]
    store.folder.write_json("manifest.json", {**store.manifest, "shards": shards})
    store.folder.finish({})
    os.rename(store.folder.path(), plan.nodes["prepare"].artifact.path())
    record(plan)
    maker = InProcess(new_plan(config, storage))
    for name in ("pretrain", "finetune", "pseudo_label", "student", "evaluate"):
        assert maker.make(maker.plan.nodes[name])
    return new_plan(config, storage)


def new_plan(config: Config, storage: Folder) -> Plan:
    from raymae.datasets.clips import load

    return Plan(config, load(config.data, None), storage, "evaluate")


@pytest.fixture
def storage(made: Plan, tmp_path: Path) -> Folder:
    """A copy of it."""
    shutil.copytree(made.storage.path(), tmp_path / "storage")
    return open_storage(str(tmp_path / "storage"))


def aged(storage: Folder, days: float) -> None:
    """Let every file be some days old."""
    then = time.time() - days * DAY
    for folder, _, names in os.walk(storage.path()):
        for name in names:
            os.utime(f"{folder}/{name}", (then, then))


def test_everything_is_listed_once_with_its_run(made: Plan, storage: Folder) -> None:
    items = take(storage)
    total = sum(os.path.getsize(f"{folder}/{name}") for folder, _, names in os.walk(storage.path()) for name in names)
    assert sum(item.size for item in items) == total
    stages = {item.kind: item for item in items if item.path.startswith("artifacts/") and item.kind != "shards"}
    assert {kind: item.name for kind, item in stages.items()} == {node.stage: node.key for node in made.nodes.values()}
    run = f"runs/{made.run_folder.url.rpartition('/')[2]}"
    assert all(item.state == "finished" and item.used_by == [run] for item in stages.values())
    shards = [item for item in items if item.kind == "shards"]
    assert len(shards) > 1
    assert all(item.used_by == [f"prepare/{made.nodes['prepare'].key}"] for item in shards)


def test_an_unfinished_stage_says_how_far_it_came(made: Plan, storage: Folder) -> None:
    folder = storage / f"artifacts/finetune/{made.nodes['finetune'].key}"
    folder.remove("done.json")
    assert {item.state for item in take(storage) if item.kind == "finetune"} == {"started"}
    folder.write_json("commits/000000012/commit.json", {})
    assert {item.state for item in take(storage) if item.kind == "finetune"} == {"at step 12"}


@pytest.mark.parametrize("kind", ["prepare", "pretrain", "pseudo_label", "student", "evaluate", "shards"])
def test_a_changed_byte_is_found(kind: str, storage: Folder) -> None:
    items = {item.path: item for item in take(storage)}
    assert [damage(storage, item) for item in items.values()] == [None] * len(items)
    path = next(item.path for item in items.values() if item.kind == kind)
    file = Path(storage.path(path))
    if kind != "shards":
        names = {"prepare": "clips.parquet", "pseudo_label": "pseudo_labels.parquet", "evaluate": "report.json"}
        file = file / names.get(kind, "model.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert [one for one in items if damage(storage, items[one])] == [path]
    file.unlink()
    if kind != "shards":
        assert damage(storage, items[path]) == f"{file.name} is missing"


def test_what_a_run_names_stays_and_goes_with_it(made: Plan, storage: Folder) -> None:
    stray = storage / "artifacts/finetune/0123456789abcdef"
    stray.write_bytes("model.safetensors", b"x")
    (storage / "ray/pretrain-1").write_bytes("state", b"x")
    aged(storage, 8)
    (storage / "artifacts/student/fedcba9876543210").write_bytes("events/1.json", b"{}")  # somebody makes it now
    going = unreferenced(take(storage), keep_days=7)
    assert {item.path for item in going} == {"artifacts/finetune/0123456789abcdef", "ray/pretrain-1"}
    remove(storage, going)
    assert not stray.exists()
    run = f"runs/{made.run_folder.url.rpartition('/')[2]}"
    remove(storage, unreferenced(take(storage), keep_days=7, forget=[run]))
    left = {item.path for item in take(storage)}
    assert left == {"artifacts/student/fedcba9876543210"}


def test_shards_of_two_stores_go_with_the_last(made: Plan, storage: Folder) -> None:
    other = storage / "artifacts/prepare/aaaaaaaaaaaaaaaa"
    shutil.copytree((storage / f"artifacts/prepare/{made.nodes['prepare'].key}").path(), other.path())
    aged(storage, 8)
    going = unreferenced(take(storage), keep_days=7)
    assert [item.path for item in going] == ["artifacts/prepare/aaaaaaaaaaaaaaaa"]


def test_a_clip_is_followed_into_what_began_with_what_saw_it(made: Plan, storage: Folder) -> None:
    store = made.store.clips.to_pandas()
    train = store[store["split"] == "train"]
    places = {name: f"{node.stage}/{node.key}" for name, node in made.nodes.items()}
    labelled = train[train["scene_label"].notna()]["clip_id"].iloc[0]
    sights, unknown = models_trained_on(storage, "clip_id", [labelled])
    assert not unknown
    found = {(one.model, one.role, one.through) for one in sights}
    assert found == {
        (places["pretrain"], "unlabelled", None),
        (places["finetune"], "labelled", None),
        (places["finetune"], "unlabelled", places["pretrain"]),
        (places["student"], "labelled", None),
        (places["student"], "unlabelled", places["pretrain"]),
    }
    from raymae.training.spec import accepted_labels

    accepted = accepted_labels(made.nodes["pseudo_label"].artifact)["clip_id"][0].as_py()
    sights, _ = models_trained_on(storage, "clip_id", [accepted])
    own = {(one.model, one.role) for one in sights if one.through is None}
    assert own == {(places["pretrain"], "unlabelled"), (places["student"], "pseudo-labelled")}
    tested = store[store["split"].str.startswith("test")]["clip_id"].iloc[0]
    assert models_trained_on(storage, "clip_id", [tested]) == ([], [])


def test_a_question_to_nothing_is_an_error(storage: Folder) -> None:
    with pytest.raises(ValueError, match=r"no clip table has a column speaker; there are: .*clip_id"):
        models_trained_on(storage, "speaker", ["a"])
    with pytest.raises(ValueError, match="no clip_id of any clip is nothing"):
        models_trained_on(storage, "clip_id", ["nothing"])
    with pytest.raises(ValueError, match=r"there is no runs/gone to forget; there are: runs/tiny-evaluate-"):
        unreferenced(take(storage), 7, ["runs/gone"])


def test_a_store_that_is_gone_leaves_it_unsaid(made: Plan, storage: Folder) -> None:
    storage.remove(f"artifacts/prepare/{made.nodes['prepare'].key}")
    sights, unknown = models_trained_on(storage, "clip_id", ["x"])
    assert not sights
    assert len(unknown) == 3
    assert all("is gone" in line for line in unknown)


def test_the_job(made: Plan, storage: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = storage.url
    start(JOBS["artifacts"], ["ls", "--storage", url, "--json", str(tmp_path / "ls.json")])
    said = capsys.readouterr().out
    assert f"student        {made.nodes['student'].key}" in said
    assert {item["kind"] for item in json.loads((tmp_path / "ls.json").read_text())} >= {"prepare", "shards", "runs"}
    start(JOBS["artifacts"], ["verify", "--storage", url])
    said = capsys.readouterr().out
    assert "stages and shards are sound" in said
    assert "can't be verified" not in said
    Path(storage.path(f"artifacts/student/{made.nodes['student'].key}/model.safetensors")).unlink()
    with pytest.raises(SystemExit) as ended:
        start(JOBS["artifacts"], ["verify", "--storage", url])
    assert ended.value.code == 1
    assert "model.safetensors is missing" in capsys.readouterr().out
    run = f"runs/{made.run_folder.url.rpartition('/')[2]}"
    start(JOBS["artifacts"], ["gc", "--storage", url, "--forget", run, "--keep-days", "0"])
    assert "nothing is removed without --delete" in capsys.readouterr().out
    assert storage.exists("artifacts/pretrain")
    answer = tmp_path / "trained-on.json"
    start(
        JOBS["artifacts"],
        ["trained-on", "--storage", url, "--column", "split", "--values", "train", "--json", str(answer)],
    )
    assert f"pretrain/{made.nodes['pretrain'].key}" in capsys.readouterr().out
    assert json.loads(answer.read_text()).keys() == {"trained_on", "unknown"}
    start(JOBS["artifacts"], ["gc", "--storage", url, "--forget", run, "--keep-days", "0", "--delete"])
    assert not [item for item in take(storage) if item.kind not in ("runs", "sweeps")]
    for arguments in (["ls", "--storage", str(tmp_path / "none")], ["trained-on", "--storage", url]):
        with pytest.raises(SystemExit, match="error: --"):
            start(JOBS["artifacts"], arguments)


def test_the_old_name_of_a_subcommand_leads_to_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        start(JOBS["artifacts"], ["seen", "--values", "x"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: the subcommand seen is now called trained-on\n"
