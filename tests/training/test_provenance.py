"""A checkpoint records what it was trained on, and a stage resumes from it only with the same clips."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raymae.config import Config, from_dict
from raymae.features.store import SHARDS, FeatureStore
from raymae.storage.commits import COMMIT_FORMAT
from raymae.storage.folder import COMMITS, Folder
from raymae.training.guards.deadline import Deadline
from raymae.training.run_stage import build_task, run_stage
from raymae.training.spec import StageSpec
from raymae.training.state.provenance import check_commit, source, trained_clips
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession
from tests.support.audio_files import make_store
from tests.support.training import TINY, make_spec

OVER = Deadline(1.0, 0.0)
"""Deadline of a job that started long ago: every run stops after its first step."""


def commit_of(spec: StageSpec) -> dict[str, Any]:
    return dict((spec.artifact / COMMITS / newest(spec)).read_json("commit.json"))


def newest(spec: StageSpec) -> str:
    """Name of its only checkpoint."""
    (name,) = (spec.artifact / COMMITS).names()
    return name


@pytest.fixture
def fewer(tmp_path: Path, clips: pa.Table) -> FeatureStore:
    """The store without one training clip, as if it were quarantined."""
    return make_store(tmp_path / "fewer", pa.concat_tables([clips.slice(0, 3), clips.slice(4)]))


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_resuming_with_other_clips_is_refused(
    store: FeatureStore, fewer: FeatureStore, tmp_path: Path, kind: str
) -> None:
    short = replace(
        TINY,
        pretrain=replace(TINY.pretrain, epochs=1, warmup_epochs=0),
        finetune=replace(TINY.finetune, epochs=1, warmup_epochs=0),
    )
    spec = make_spec(fewer, tmp_path / "run", kind, short)
    assert not run_stage(spec, BareSession(fewer, spec.artifact), OVER)
    state = commit_of(spec)
    assert from_dict(Config, state["config"]) == spec.config
    assert state["class_names"] == (["high", "low"] if kind == "finetune" else [])
    assert state["clips"]["count"] == sum(len(rows) for rows in spec.order().rows)
    check_commit(spec, newest(spec))

    back = replace(spec, store=store)  # the clip is readable again
    count = state["clips"]["count"]
    with pytest.raises(
        ValueError, match=rf"{kind} can't resume from step 1: it was trained on {count} clips .*/commits"
    ):
        check_commit(back, newest(back))
    with pytest.raises(ValueError, match="can't resume from step 1"):
        run_stage(back, BareSession(store, spec.artifact))
    spec.artifact.remove(COMMITS)
    assert run_stage(back, BareSession(store, spec.artifact))


def test_a_checkpoint_of_another_format_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    spec = make_spec(store, tmp_path)
    assert not run_stage(spec, BareSession(store, spec.artifact), OVER)
    state, folder = commit_of(spec), spec.artifact / COMMITS / newest(spec)
    assert state.pop("format") == COMMIT_FORMAT
    folder.write_json("commit.json", state)
    message = f"000000001-[0-9a-f]{{8}}/commit.json is of format 1; this version of raymae reads format {COMMIT_FORMAT}"
    with pytest.raises(ValueError, match=message) as error:
        run_stage(spec, BareSession(store, spec.artifact))
    assert "damaged" not in str(error.value)


def test_the_fingerprint_depends_on_clips_order_and_labels(
    store: FeatureStore, tmp_path: Path, clips: pa.Table
) -> None:
    labels = clips["scene_label"].to_pylist()
    swapped = [{"high": "low", "low": "high", None: None}[label] for label in labels]
    tables = {
        "same": clips,
        "labels": clips.set_column(clips.column_names.index("scene_label"), "scene_label", pa.array(swapped)),
        "order": clips.take(list(range(len(clips)))[::-1]),
    }
    found = {}
    for name, table in tables.items():
        other = FeatureStore(Folder(str(tmp_path / name)), Folder(str(tmp_path / SHARDS)))
        other.__dict__["clips"] = table
        for kind in ("pretrain", "finetune"):
            found[name, kind] = trained_clips(make_spec(other, tmp_path, kind))["fingerprint"]
    for kind in ("pretrain", "finetune"):
        assert found["same", kind] == trained_clips(make_spec(store, tmp_path, kind))["fingerprint"]
        assert found["order", kind] != found["same", kind]
    assert found["labels", "pretrain"] == found["same", "pretrain"]
    assert found["labels", "finetune"] != found["same", "finetune"]


def test_a_checkpoint_has_the_step_of_its_weights(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(store, tmp_path)
    trainer = Trainer.start(build_task(spec), BareSession(store, spec.artifact), spec.artifact)
    real = Folder.write_json

    def slowly(self: Folder, name: str, value: Any) -> None:
        time.sleep(0.5)
        real(self, name, value)

    monkeypatch.setattr(Folder, "write_json", slowly)
    trainer.progress.step = 3
    trainer._commit()
    trainer.progress.step = 4  # the next step ends while the checkpoint is written
    trainer.committer.wait()
    assert commit_of(spec)["progress"]["step"] == 3


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_git_commit_of_the_code(tmp_path: Path) -> None:
    code, other = tmp_path / "repository/code", tmp_path / "repository/environment"
    for folder in (code, other):
        folder.mkdir(parents=True)
        (folder / "file.py").write_text("1")
    assert source(code) == {}
    git(tmp_path / "repository", "init")
    git(code, "add", "file.py")
    git(code, "commit", "-m", "first")
    commit = git(code, "rev-parse", "HEAD")
    assert source(code) == {"git_commit": commit}
    assert source(other) == {}  # installed within a repository that doesn't hold it
    (code / "file.py").write_text("2")
    assert source(code) == {"git_commit": commit, "git_dirty": "true"}
    assert source(tmp_path / "nowhere") == {}
