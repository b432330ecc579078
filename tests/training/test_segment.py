"""Segments of a stage: a stage trained in parts is the stage to the bit, and a part takes over all but its settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from raymae.config import Config, changed
from raymae.features.store import FeatureStore
from raymae.storage.commits import latest_step, read_commit
from raymae.storage.folder import Folder
from raymae.training.guards.deadline import FOREVER, Deadline
from raymae.training.optim import learning_rate
from raymae.training.run_stage import build_task, run_stage
from raymae.training.spec import StageSpec
from raymae.training.state.checkpoint import Commit, load_commit, pack_optimizer
from raymae.training.state.segment import COMMIT_NAME, Parent, Segment
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession
from tests.support.training import TINY, KilledError, make_spec, train

SHORT = replace(TINY, finetune=replace(TINY.finetune, epochs=3, layer_decay=0.8, weight_decay=0.01))
ENDS = (2, 5)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def part(spec: StageSpec, folder: Path, end: int, before: StageSpec | None = None, **values: Any) -> StageSpec:
    """The segment of a stage up to a step, with other values, which continues another one."""
    parent = None
    if before is not None:
        assert before.segment is not None
        parent = Parent(key=before.segment.key, artifact=before.artifact)
    config: Config = changed(spec.config, values)
    segment = Segment(key=f"{folder.name}-{end}", end=end, parent=parent)
    return replace(spec, config=config, artifact=Folder(str(folder / str(end))), segment=segment)


def run(spec: StageSpec, deadline: Deadline = FOREVER) -> bool:
    return run_stage(spec, BareSession(spec.store, spec.artifact), deadline)


def end_of(spec: StageSpec) -> Commit:
    """The checkpoint at which a segment ended."""
    return load_commit(spec.artifact, spec.artifact.result()[COMMIT_NAME])


@pytest.fixture(scope="module")
def whole(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory, _one_thread: None) -> StageSpec:
    """A fine-tuning that has run in one go."""
    spec = make_spec(store, tmp_path_factory.mktemp("whole"), "finetune", SHORT)
    assert run(spec)
    return spec


@pytest.fixture(scope="module")
def parts(whole: StageSpec, tmp_path_factory: pytest.TempPathFactory) -> list[StageSpec]:
    """The same in three segments."""
    folder, found, before = tmp_path_factory.mktemp("parts"), [], None
    for end in (*ENDS, whole.order().steps):
        before = part(whole, folder, end, before)
        assert run(before)
        found.append(before)
    return found


def test_a_stage_in_segments_is_the_stage_to_the_bit(whole: StageSpec, parts: list[StageSpec]) -> None:
    weights = [load(spec.artifact.read_checked("model.safetensors")) for spec in (whole, parts[-1])]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    results = [spec.artifact.result() for spec in (whole, parts[-1])]
    assert results[0]["trail"] == results[1]["trail"]
    assert COMMIT_NAME not in results[1]
    for spec, end in zip(parts[:-1], ENDS, strict=True):
        assert spec.artifact.result()["steps"] == latest_step(spec.artifact) == end


def test_a_segment_takes_over_all_but_its_settings(
    parts: list[StageSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in Path(parts[0].artifact.path()).rglob("*")}
    values = {"finetune.lr": 5e-4, "finetune.weight_decay": 0.2, "finetune.layer_decay": 0.6}
    child = part(parts[0], tmp_path, ENDS[1], parts[0], **values)
    tensors, state = end_of(parts[0])
    trainer = Trainer.start(build_task(child), BareSession(child.store, child.artifact), child.artifact)
    moments = pack_optimizer(trainer.optimizer)
    assert all(torch.equal(value, tensors["model"][name]) for name, value in trainer.model.state_dict().items())
    assert all(torch.equal(value, tensors["ema"][name]) for name, value in trainer.ema.state_dict().items())
    assert moments.keys() == tensors["optimizer"].keys()
    assert all(torch.equal(value, tensors["optimizer"][name]) for name, value in moments.items())
    assert (trainer.progress.step, trainer.progress.trail) == (ENDS[0], state["progress"]["trail"])

    decays = {group["weight_decay"] for group in trainer.optimizer.param_groups}
    assert decays == {0.0, 0.2}, "weight decay is the segment's own"
    rates, real_take = [], Trainer._take

    def take(self: Trainer, steps: Iterator[Any], share: float) -> None:
        real_take(self, steps, share)
        rates.append(next(group["lr"] for group in self.optimizer.param_groups if group["name"] == "head"))

    monkeypatch.setattr(Trainer, "_take", take)
    assert run(child)
    steps = child.order().steps
    assert rates == [learning_rate(step / steps, child.train) for step in range(*ENDS)], (
        "its own peak, at the same steps"
    )
    assert child.artifact.result()["trail"] == parts[1].artifact.result()["trail"], "the clips are the same"
    own, same = (end_of(one)[0]["model"] for one in (child, parts[1]))
    assert not all(torch.equal(value, same[name]) for name, value in own.items())
    after = {path.name: path.stat().st_mtime_ns for path in Path(parts[0].artifact.path()).rglob("*")}
    assert after == before, "the segment before is only read"


def test_a_killed_segment_resumes_to_the_bit(
    parts: list[StageSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = part(parts[0], tmp_path, ENDS[1], parts[0])
    assert not run(child, Deadline(1.0, 0.0)), "time is up after a step"
    assert latest_step(child.artifact) == ENDS[0] + 1

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:  # after the last checkpoint, before the result
        patched.setattr("raymae.training.run_stage.finish", killed)
        with pytest.raises(KilledError):
            run(child)
    assert latest_step(child.artifact) == ENDS[1]
    taken, real_take = [], Trainer._take
    monkeypatch.setattr(Trainer, "_take", lambda *rest: (taken.append(1), real_take(*rest))[1])
    assert run(child)
    assert not taken, "no step is repeated"
    own, same = (end_of(one)[0]["model"] for one in (child, parts[1]))
    assert all(torch.equal(value, same[name]) for name, value in own.items())


def test_a_checkpoint_of_another_segment_is_refused(whole: StageSpec, parts: list[StageSpec], tmp_path: Path) -> None:
    name = parts[0].artifact.result()[COMMIT_NAME]
    assert read_commit(parts[0].artifact, name)["segment"]["key"] == parts[0].segment.key
    child = part(parts[0], tmp_path, ENDS[1], parts[0])
    wrong = Parent(key="another", artifact=parts[0].artifact)
    with pytest.raises(ValueError, match=r"was written by segment parts.*, not by segment another"):
        run(replace(child, segment=replace(child.segment, parent=wrong)))
    with pytest.raises(ValueError, match=r"was written by segment parts.*, not by a whole stage"):
        train(replace(whole, artifact=parts[0].artifact))


def test_a_weight_decay_of_zero_moves_no_moments(parts: list[StageSpec], tmp_path: Path) -> None:
    child = part(parts[0], tmp_path, ENDS[1], parts[0], **{"finetune.weight_decay": 0.0})

    def places(spec: StageSpec) -> list[str]:
        task = build_task(spec)
        names = {id(value): name for name, value in task.model.named_parameters()}
        return [names[id(value)] for group in task.parameter_groups() for value in group["params"]]

    assert places(child) == places(parts[0])
    assert run(child)
