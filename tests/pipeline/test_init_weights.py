"""Given weights from the command line to the trained model: where they lie, what they are, and what follows from it."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from raymae.config import FRONT_ENDS, AudioConfig, Config, DataConfig, ModelConfig
from raymae.features.store import FeatureStore
from raymae.inference.classifier import read_classifier, write_classifier
from raymae.models import build_classifier
from raymae.pipeline.plan.init_weights import bring
from raymae.pipeline.plan.plan import Plan
from raymae.pipeline.run import run_plan
from raymae.storage.folder import Folder, open_storage
from raymae.tracking.model_uri import open_artifact
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession
from tests.support.audio_files import write_clips, write_table
from tests.support.training import TINY, make_spec, train, train_in_two
from tests.support.weights import make_plan, make_state, start

torch.set_num_threads(1)


SHORT = replace(
    TINY,
    pretrain=replace(TINY.pretrain, epochs=1.5, warmup_epochs=0),
    finetune=replace(TINY.finetune, epochs=5, warmup_epochs=0),
)


def spec_of(plan: Plan, name: str, store: FeatureStore) -> StageSpec:
    """The plan's stage, on a store that stands elsewhere; the weights are copied as the driver does it."""
    for section, given in plan.given.items():
        bring(given, section, plan.config, write=True)
    return replace(plan.spec(name), store=store)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A checkpoint as Audio-MAE's code writes it: below "model", with a decoder and its command line."""
    state = {**make_state(), "decoder_embed.weight": torch.zeros(4, 4), "mask_token": torch.zeros(1, 1, 4)}
    path = tmp_path / "official.pth"
    torch.save({"model": state, "epoch": 32, "args": argparse.Namespace(lr=1e-3)}, path)
    return path


@pytest.fixture(scope="module")
def pretrained(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The artifact of a pre-training."""
    spec = make_spec(store, tmp_path_factory.mktemp("pretrained"), config=SHORT)
    run_stage(spec, BareSession(store, spec.artifact))
    return spec.artifact


# Training ------------------------------------------------------------------------------------------------------------


def test_finetuning_starts_from_a_checkpoint_and_keeps_its_positions(
    official: Path, store: FeatureStore, clips: pa.Table, tmp_path: Path
) -> None:
    plan = make_plan(start(official), clips, tmp_path)
    spec = spec_of(plan, "finetune", store)
    official.unlink()  # the workers read the copy
    run_stage(spec, BareSession(store, spec.artifact))
    assert spec.artifact.result()["metrics"]["val/macro_accuracy"] > 0.75  # of 24 clips; 0.5 by chance
    table = make_state()["pos_embed"][0, 1:].unflatten(0, (9, 4))
    written = load_tensors(spec.artifact.read_bytes("model.safetensors"))
    assert torch.equal(written["encoder.pos_embed"], table)
    model = read_classifier(spec.artifact).model
    assert torch.equal(model.encoder.pos_embed, table)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_going_on_from_a_commit_is_exact(
    official: Path,
    store: FeatureStore,
    clips: pa.Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    plan = make_plan(start(official, kind, SHORT), clips, tmp_path)
    spec = spec_of(plan, kind, store)
    undisturbed = train(replace(spec, artifact=Folder(str(tmp_path / "whole"))))
    resumed = train_in_two(spec, monkeypatch, at=5)
    assert "encoder.pos_embed" in resumed
    for name, value in undisturbed.items():
        assert torch.equal(value, resumed[name]), name


def test_own_artifacts_are_weights_too(
    pretrained: Folder, store: FeatureStore, clips: pa.Table, tmp_path: Path
) -> None:
    classifier = make_spec(store, tmp_path / "classifier", "finetune", SHORT, encoder=pretrained)
    run_stage(classifier, BareSession(store, classifier.artifact))
    for source in (pretrained, classifier.artifact):
        given = load_tensors(source.read_bytes("model.safetensors"))
        for kind in ("pretrain", "finetune"):
            plan = make_plan(start(source.url, kind), clips, tmp_path)
            task = Trainer.start(*task_of(spec_of(plan, kind, store))).model
            own = task.state_dict()
            shared = [name for name in own if name.startswith("encoder.") and name in given]
            assert len(shared) >= 27
            assert all(torch.equal(own[name], given[name]) for name in shared)
            decoder = [name for name in own if name.startswith("decoder") and name in given]
            assert bool(decoder) == (kind == "pretrain" and source is pretrained)
            assert all(torch.equal(own[name], given[name]) for name in decoder)


def task_of(spec: StageSpec) -> tuple[Any, BareSession, Folder]:
    from raymae.training.run_stage import build_task

    return build_task(spec), BareSession(spec.store, spec.artifact), spec.artifact


# The plan ------------------------------------------------------------------------------------------------------------


def test_given_weights_take_the_place_of_pretraining(official: Path, clips: pa.Table, tmp_path: Path) -> None:
    plan = make_plan(start(official), clips, tmp_path)
    stages = ["prepare", "finetune", "cnn", "pseudo_label", "student", "evaluate", "register"]
    assert list(plan.nodes) == stages
    copy = plan.given["finetune"].artifact
    assert [plan.spec(name).encoder for name in ("finetune", "student", "cnn")] == [copy, copy, None]
    assert not copy.is_done()  # planning writes nothing
    going_on = make_plan(start(official, "pretrain"), clips, tmp_path)
    assert list(going_on.nodes) == ["prepare", "pretrain", *stages[1:]]
    assert going_on.spec("pretrain").encoder == copy
    assert going_on.spec("finetune").encoder == going_on.nodes["pretrain"].artifact


def test_keys_follow_the_content_of_the_weights_not_their_place(
    official: Path, clips: pa.Table, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "renamed.bin"
    moved.parent.mkdir()
    shutil.copy(official, moved)
    at_a_url = Folder("memory://given")
    at_a_url.write_bytes("weights.pth", official.read_bytes())
    other = tmp_path / "other.pth"
    torch.save(make_state(seed=1), other)

    def keys(config: Config) -> dict[str, str]:
        return {name: node.key for name, node in make_plan(config, clips, tmp_path).nodes.items()}

    assert keys(start(official)) == keys(start(moved)) == keys(start("memory://given/weights.pth"))
    for section in ("finetune", "pretrain"):
        before, after = keys(start(official, section)), keys(start(other, section))
        assert [name for name in before if before[name] == after[name]] == (
            ["prepare", "cnn"] if section == "pretrain" else ["prepare"]
        )
    without = keys(TINY)
    assert without["pretrain"] != keys(start(official, "pretrain"))["pretrain"]


def test_weights_that_a_target_does_not_use_are_not_looked_for(clips: pa.Table, tmp_path: Path) -> None:
    missing = start(tmp_path / "gone.pth")
    assert list(make_plan(missing, clips, tmp_path, "pretrain").nodes) == ["prepare", "pretrain"]
    with pytest.raises(ValueError, match=r"finetune\.init_from .*gone\.pth can't be read: there is no such file"):
        make_plan(missing, clips, tmp_path, "finetune")


def test_only_one_section_can_start_from_weights() -> None:
    with pytest.raises(ValueError, match=r"pretrain\.init_from would have no effect"):
        start("a.pth", "pretrain", start("b.pth"))


def test_the_driver_says_what_starts_afresh(
    official: Path, clips: pa.Table, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = start(official, "pretrain")
    with caplog.at_level("INFO", "raymae"):
        bring(make_plan(config, clips, tmp_path).given["pretrain"], "pretrain", config, write=False)
    assert "the decoder is initialised anew: mask_token is missing, expected (1, 1, 16)" in caplog.text
    shallow = replace(config, model=replace(config.model, depth=1))
    with caplog.at_level("INFO", "raymae"):
        bring(make_plan(shallow, clips, tmp_path).given["pretrain"], "pretrain", shallow, write=False)
    assert "the first 1 of 2 blocks are used" in caplog.text


def test_a_copy_says_where_it_came_from(official: Path, clips: pa.Table, tmp_path: Path) -> None:
    given = make_plan(start(official), clips, tmp_path).given["finetune"]
    bring(given, "finetune", start(official), write=False)
    assert not given.artifact.is_done()
    bring(given, "finetune", start(official), write=True)
    assert given.artifact.result()["source"] == str(official)
    assert given.artifact.url == str(tmp_path / "artifacts/weights" / given.key)


def test_a_dry_run_checks_and_writes_no_weights(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path, write_clips(tmp_path, 40))
    config = replace(start(official), dry_run=True, data=DataConfig(dataset="table", tables=(str(table),)))
    storage = tmp_path / "storage"
    plan = run_plan(config, "finetune", open_storage(str(storage)))["plan"]
    assert list(plan) == ["prepare", "finetune"]
    assert f"finetune starts from {official}" in capsys.readouterr().out
    assert not list(storage.rglob("*.safetensors"))
    torch.save(make_state(embed_dim=64), official)
    with pytest.raises(ValueError, match=r"found \(1, 1, 64\), expected \(1, 1, 32\)"):
        run_plan(config, "finetune", open_storage(str(storage)))


def test_a_registered_classifier_is_found_by_its_uri(clips: pa.Table, tmp_path: Path) -> None:
    from raymae.tracking.tracker import Tracker

    folder = Folder(str(tmp_path / "classifier"))
    settings = {"audio": TINY.audio, "model_config": TINY.model, "finetune": TINY.finetune}
    model = build_classifier(TINY.audio, TINY.model, TINY.finetune, 2)
    write_classifier(folder, model, class_names=["high", "low"], **settings)
    config = replace(TINY, storage=str(tmp_path / "storage"))
    tracker = Tracker(config.tracking, open_storage(config.storage))
    run_id = tracker.run("key", "run")
    uri, _ = tracker.register(run_id, folder, {})
    by_uri = make_plan(start(uri, config=config), clips, tmp_path)
    by_folder = make_plan(start(folder.url, config=config), clips, tmp_path)
    assert by_uri.nodes["finetune"].key == by_folder.nodes["finetune"].key
    assert open_artifact(uri, config).read_json("classifier.json")["class_names"] == ["high", "low"]


# Refusals and warnings -----------------------------------------------------------------------------------------------


def damaged(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 no archive")


def with_code(path: Path) -> None:
    torch.save({"model": make_state(), "hook": open}, path)


def own_names(path: Path) -> None:
    torch.save({f"encoder.{name}": value for name, value in make_state().items()}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (damaged, r"torch\.load\(weights_only=True\) can't read it"),
        (with_code, r"torch\.load\(weights_only=True\) can't read it: .*"),
        (own_names, "has raymae's own names: give its folder"),
        (lambda path: torch.save([1, 2], path), "no state dict: expected tensors by name"),
        (lambda path: torch.save({"model": {"a": 3}}, path), "no state dict"),
        (lambda path: torch.save(make_state(patch_size=4), path), r"found \(32, 1, 4, 4\), expected \(32, 1, 8, 8\)"),
        (lambda path: torch.save(make_state(in_chans=3), path), r"found \(32, 3, 8, 8\), expected \(32, 1, 8, 8\)"),
        (lambda path: torch.save(make_state(depth=1), path), "found 1 blocks, expected 2"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    write: Callable[[Path], None], message: str, clips: pa.Table, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    write(path)
    config = start(path)
    given = make_plan(config, clips, tmp_path).given["finetune"]
    with pytest.raises(ValueError, match=rf"(?s)^finetune\.init_from {path}: .*{message}"):
        bring(given, "finetune", config, write=True)
    assert not given.artifact.is_done()


def test_a_damaged_safetensors_file_is_refused(clips: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(make_state(), path)
    path.write_bytes(path.read_bytes()[:-100])
    given = make_plan(start(path), clips, tmp_path).given["finetune"]
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
        bring(given, "finetune", start(path), write=True)


@pytest.mark.parametrize("files", [(), ("model.json",), ("model.safetensors",)])
def test_a_folder_that_is_no_artifact_is_refused(clips: pa.Table, tmp_path: Path, files: tuple[str, ...]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    with pytest.raises(ValueError, match=r"neither a pre-training \(model\.json\) nor a classifier"):
        make_plan(start(folder), clips, tmp_path)


def test_other_heads_are_refused_where_the_weights_come_with_a_card(
    pretrained: Folder, clips: pa.Table, tmp_path: Path
) -> None:
    folder = Folder(str(shutil.copytree(pretrained.path(), tmp_path / "own")))
    config = start(folder.url, config=replace(TINY, model=replace(TINY.model, num_heads=4)))
    with pytest.raises(ValueError, match=r"model\.num_heads: found 2, expected 4"):
        bring(make_plan(config, clips, tmp_path).given["finetune"], "finetune", config, write=False)
    card = folder.read_json("model.json")
    folder.write_json("model.json", {key: value for key, value in card.items() if key != "model"})
    with pytest.raises(ValueError, match=r"model\.json is damaged: KeyError 'model'"):
        bring(make_plan(start(folder.url), clips, tmp_path).given["finetune"], "finetune", TINY, write=False)


def test_a_cnn_has_no_encoder_to_start_from(clips: pa.Table, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "cnn"))
    cnn = build_classifier(TINY.audio, TINY.model, TINY.finetune, 2, cnn="resnet10t")
    settings = {"audio": TINY.audio, "model_config": TINY.model, "finetune": TINY.finetune}
    write_classifier(folder, cnn, class_names=["a", "b"], cnn="resnet10t", **settings)
    given = make_plan(start(folder.url), clips, tmp_path).given["finetune"]
    with pytest.raises(ValueError, match=r"a CNN \(resnet10t\), which has no encoder"):
        bring(given, "finetune", TINY, write=False)


@pytest.mark.parametrize("audio", [FRONT_ENDS["audiomae"], AudioConfig(n_mels=128)])
def test_another_front_end_than_audio_maes_is_warned_of(
    audio: AudioConfig, clips: pa.Table, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ModelConfig(embed_dim=64, depth=1, num_heads=1, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    config = Config(audio=audio, model=model)
    path = tmp_path / "audiomae.safetensors"
    save_file(make_state(embed_dim=64, depth=1, num_heads=1, img_size=(1024, 128), patch_size=16), path)
    config = start(path, config=config)
    bring(make_plan(config, clips, tmp_path).given["finetune"], "finetune", config, write=False)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if audio == FRONT_ENDS["audiomae"]:
        assert not warned
    else:
        assert len(warned) == 1
        assert "another front end: audio.sample_rate = 32000 (theirs 16000)" in warned[0]
