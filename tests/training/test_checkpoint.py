"""Checkpoints: complete or ignored, whole or replaced by the one before, written by who owns the stage."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raymae.features.store import FeatureStore
from raymae.storage.commits import complete, latest_step, step_of
from raymae.storage.folder import COMMITS, LEASE, Folder
from raymae.storage.lease import Lease, LeaseLostError
from raymae.training.run_stage import build_task
from raymae.training.state.checkpoint import Committer, load_commit
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession
from tests.support.training import TINY, make_spec

SHORT = replace(TINY, pretrain=replace(TINY.pretrain, epochs=2.5, keep_commits=2))


def test_an_unfinished_checkpoint_is_ignored(store: FeatureStore, tmp_path: Path) -> None:
    spec = make_spec(store, tmp_path)
    trainer = Trainer.start(build_task(spec), BareSession(store, spec.artifact), spec.artifact)
    trainer.progress.step = 3
    trainer._commit()
    trainer.committer.wait()
    spec.artifact.write_bytes("commits/000000009-dead/model.safetensors", b"half")
    again = Trainer.start(build_task(spec), BareSession(store, spec.artifact), spec.artifact)
    assert again.progress.step == 3


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    committer = Committer(Folder(str(tmp_path)), keep=2)
    for step in (5, 10, 15):
        committer.commit(step, {"model": {"w": torch.ones(2)}}, {})
    committer.wait()
    assert [step_of(name) for name in committer.folder.names()] == [10, 15]
    committer.clear()
    assert committer.folder.names() == []


def test_only_half_written_checkpoints_before_the_oldest_kept_are_removed(tmp_path: Path) -> None:
    """A younger one may be another process's, which is writing it."""
    committer = Committer(Folder(str(tmp_path)), keep=1)
    for name in ("000000003-dead", "000000005-other", "000000009-other"):
        committer.folder.write_bytes(f"{name}/model.safetensors", b"half")
    committer.commit(5, {"model": {"w": torch.ones(2)}}, {})
    committer.wait()
    assert committer.folder.names() == sorted([f"000000005-{committer.writer}", "000000005-other", "000000009-other"])


def test_two_committers_leave_each_other_s_checkpoint_whole(tmp_path: Path) -> None:
    """The slower one begins, the faster one writes all of the same step meanwhile."""
    artifact = Folder(str(tmp_path))
    slow, fast = Committer(artifact, keep=1), Committer(artifact, keep=1)
    slow.check = lambda: (fast.commit(7, {"model": {"w": torch.ones(2)}}, {}), fast.wait())[-1]
    slow.commit(7, {"model": {"w": torch.ones(2)}}, {})
    slow.wait()
    assert len(complete(artifact)) == 2
    for name in complete(artifact):
        assert torch.equal(load_commit(artifact, name)[0]["model"]["w"], torch.ones(2))


def test_who_has_lost_the_stage_writes_no_checkpoint(tmp_path: Path) -> None:
    mine, other = (Lease(Folder(str(tmp_path)) / LEASE, renew=1000, expire=0.05) for _ in range(2))
    committer = Committer(Folder(str(tmp_path)), keep=1, check=mine.fence.check)
    assert mine.take()
    committer.commit(5, {"model": {"w": torch.ones(2)}}, {})
    committer.wait()
    assert not other.take()
    time.sleep(0.1)
    assert other.take()
    committer.commit(6, {"model": {"w": torch.ones(2)}}, {})
    with pytest.raises(LeaseLostError, match="was taken over"):
        committer.wait()
    assert latest_step(Folder(str(tmp_path))) == 5


def damage(path: Path, kind: str) -> None:
    """Damage a file of a checkpoint."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes({"flipped": bytes(content), "cut": bytes(content[:-1]), "empty": b""}[kind])


@pytest.mark.parametrize("part", ["model", "optimizer", "commit"])
@pytest.mark.parametrize("kind", ["flipped", "cut", "missing", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    store: FeatureStore, tmp_path: Path, kind: str, part: str
) -> None:
    spec = make_spec(store, tmp_path, config=SHORT)
    trainer = Trainer.start(build_task(spec), BareSession(store, spec.artifact), spec.artifact)
    for step in (3, 6):
        trainer.progress.step = step
        trainer._commit()
        trainer.committer.wait()
    name = complete(spec.artifact)[-1]
    file = Path(spec.artifact.path(f"{COMMITS}/{name}/{'commit.json' if part == 'commit' else f'{part}.safetensors'}"))
    damage(file, kind)
    again = Trainer.start(build_task(spec), BareSession(store, spec.artifact), spec.artifact)
    assert again.progress.step == 3
    assert [step_of(one) for one in complete(spec.artifact)] == [3]


def test_a_checkpoint_has_the_state_at_the_call(tmp_path: Path) -> None:
    committer, written, unblock = Committer(Folder(str(tmp_path)), keep=1), torch.ones(2), threading.Event()
    committer._thread.submit(unblock.wait)  # the disk is slow
    state = {"progress": {"step": 5, "metrics": {"loss": 1.0}}}
    committer.commit(5, {"model": {"w": written}}, state)
    written += 1
    state["progress"]["step"] = 6
    state["progress"]["metrics"]["loss"] = 0.5
    unblock.set()
    committer.wait()
    parts, found = load_commit(Folder(str(tmp_path)), complete(Folder(str(tmp_path)))[0])
    assert found["progress"] == {"step": 5, "metrics": {"loss": 1.0}}
    assert torch.equal(parts["model"]["w"], torch.ones(2))
