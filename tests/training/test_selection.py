"""Which weights fine-tuning keeps: the rule, for any table, and its use in the training loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raymae.config import Config, DataConfig
from raymae.datasets.rows import Rows
from raymae.features.store import FeatureStore
from raymae.inference.classifier import read_classifier
from raymae.pipeline.plan.plan import Plan
from raymae.storage.folder import Folder
from raymae.training.run_stage import build_task, run_stage
from raymae.training.spec import StageSpec
from raymae.training.tasks.finetune import FinetuneTask
from raymae.training.tasks.selection import METRICS, MIN_GROUPS, described, selection
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession
from tests.support.audio_files import make_store, write_clips
from tests.support.training import TINY, KilledError, make_spec

NAMES = ["bus", "park"]
Row = tuple[str | None, str | None, str]


def table(rows: list[Row]) -> pa.Table:
    return pa.table(
        [pa.array([row[place] for row in rows], pa.string()) for place in range(3)], ["scene_label", "group", "split"]
    )


def val(name: str, groups: int, clips: int = 2) -> list[Row]:
    return [(name, f"{name}{number}", "val") for number in range(groups) for _ in range(clips)]


TRAIN: list[Row] = [("bus", "t1", "train"), ("park", "t2", "train"), (None, "t3", "train"), (None, None, "pool")]
ENOUGH = TRAIN + val("bus", MIN_GROUPS) + val("park", MIN_GROUPS + 3)


@pytest.mark.parametrize(
    ("rows", "best", "reason"),
    [
        (ENOUGH, True, f"at least {MIN_GROUPS} groups of every class"),
        (TRAIN, False, "split val has no labelled clip"),
        ([*TRAIN, (None, "v", "val")], False, "split val has no labelled clip"),
        (TRAIN + val("bus", 50) + val("park", 19, 9), False, "split val has 19 groups of 'park', fewer than 20"),
        (TRAIN + val("bus", 50), False, "split val has 0 groups of 'park'"),
        ([*ENOUGH, (None, "bus3", "train")], False, "group 'bus3' of split val occurs in split train too"),
        ([*ENOUGH, ("bus", "park0", "test_far")], False, "group 'park0' of split val occurs in split test_far too"),
        ([*ENOUGH, (None, "park0", "pool")], False, "group 'park0' of split val occurs in split pool too"),
        ([*ENOUGH, ("bus", None, "val")], False, "1 clips of split val have no group"),
        ([*ENOUGH, (None, None, "train")], False, "1 clips of split train have no group"),
    ],
)
def test_the_rule(rows: list[Row], best: bool, reason: str) -> None:
    found = selection(table(rows), NAMES)
    assert found.best is best
    assert reason in found.reason


ROWS = st.lists(
    st.tuples(
        st.sampled_from([None, *NAMES]),
        st.sampled_from([None, *(f"{name}{number}" for name in NAMES for number in range(8))]),
        st.sampled_from(["train", "val", "pool", "test_a"]),
    ),
    max_size=12,
)


@given(more=ROWS, seed=st.randoms(use_true_random=False), least=st.integers(15, 25))
def test_the_best_weights_only_if_val_is_large_and_apart(more: list[Row], seed: Any, least: int) -> None:
    rows = TRAIN + val("bus", least) + val("park", least) + more
    seed.shuffle(rows)
    found = selection(table(rows), NAMES)
    labelled = [(label, group) for label, group, split in rows if split == "val" and label]
    counts = [len({group for label, group in labelled if label == name and group}) for name in NAMES]
    known = all(group for _, group, split in rows if split in ("train", "val"))
    apart = not {group for _, group in labelled} & {group for _, group, split in rows if split != "val" and group}
    assert found.best is (min(counts) >= MIN_GROUPS and known and apart)
    assert found == selection(table(rows[::-1]), NAMES) or not apart  # which leak is named may differ


# In the loop --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store whose val has at least 20 groups of each class."""
    folder = tmp_path_factory.mktemp("rich")
    return make_store(folder / "store", write_clips(folder, 200))


def scored(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> list[dict[str, torch.Tensor]]:
    """Patch validation to return these scores, one after the other over all trainers; the weights that it gets."""
    validated: list[dict[str, torch.Tensor]] = []

    def validate(self: FinetuneTask, model: torch.nn.Module, session: Any) -> dict[str, float]:
        validated.append({name: value.clone() for name, value in model.state_dict().items()})
        return {METRICS["single"]: scores[len(validated) - 1]}

    monkeypatch.setattr(FinetuneTask, "validate", validate)
    return validated


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


SHORT = replace(TINY, finetune=replace(TINY.finetune, epochs=8, warmup_epochs=1))
SCORES = [0.2, 0.5, 0.9, 0.4, 0.9, 0.8, 0.1, 0.2, 0.3, 0.6]


@pytest.mark.parametrize("ema", [0.9, None])
def test_the_best_weights_are_kept(
    rich: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float | None
) -> None:
    validated = scored(monkeypatch, SCORES)
    config = replace(SHORT, finetune=replace(SHORT.finetune, ema_decay=ema))
    spec = make_spec(rich, tmp_path, "finetune", config)
    run_stage(spec, BareSession(rich, spec.artifact))
    assert len(validated) == len(SCORES)
    assert same(read_classifier(spec.artifact).model.state_dict(), validated[4])
    assert not same(validated[4], validated[9])
    chosen = spec.artifact.result()["selection"]
    assert chosen["weights"] == "best"
    assert chosen["step"] == spec.order().steps // 2
    assert chosen["value"] == 0.9
    assert chosen["averaged"] is (ema is not None)
    assert "the best EMA weights" in described(chosen) if ema else "the best weights" in described(chosen)


def test_without_enough_groups_the_last_weights_are_kept(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated = scored(monkeypatch, SCORES)
    spec = make_spec(store, tmp_path, "finetune", SHORT)
    run_stage(spec, BareSession(store, spec.artifact))
    assert same(read_classifier(spec.artifact).model.state_dict(), validated[-1])
    chosen = spec.artifact.result()["selection"]
    assert (chosen["weights"], chosen["step"], chosen["value"]) == ("last", spec.order().steps, SCORES[-1])
    assert chosen["reason"] == "split val has 12 groups of 'high', fewer than 20"


def test_the_best_weights_survive_a_crash(rich: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(rich, tmp_path, "finetune", SHORT)
    validated = scored(monkeypatch, [0.9, 0.3] + [0.2] * 20)
    real, stop_at = Trainer._take, round(spec.order().steps * 0.25)

    def take(self: Trainer, steps: Any, share: float) -> None:
        if self.progress.step == stop_at:
            self._commit()
            self.committer.wait()
            raise KilledError
        real(self, steps, share)

    monkeypatch.setattr(Trainer, "_take", take)
    with pytest.raises(KilledError):
        run_stage(spec, BareSession(rich, spec.artifact))
    monkeypatch.setattr(Trainer, "_take", real)
    trainer = Trainer.start(build_task(spec), BareSession(rich, spec.artifact), spec.artifact)
    assert trainer.progress.best_metric == 0.9
    assert same(trainer.best, validated[0])
    run_stage(spec, BareSession(rich, spec.artifact))
    assert same(read_classifier(spec.artifact).model.state_dict(), validated[0])


def test_training_never_reads_a_test_clip(rich: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[int] = set()
    real = FeatureStore.read

    def watched(self: FeatureStore, rows: Rows) -> Any:
        read.update(rows.tolist())
        return real(self, rows)

    monkeypatch.setattr(FeatureStore, "read", watched)
    brief = replace(
        TINY,
        pretrain=replace(TINY.pretrain, epochs=1, warmup_epochs=0),
        finetune=replace(TINY.finetune, epochs=2, warmup_epochs=1),
    )
    for kind in ("pretrain", "finetune"):
        spec = make_spec(rich, tmp_path / kind, kind, brief)
        run_stage(spec, BareSession(rich, spec.artifact))
    assert set(rich.clips["split"].take(sorted(read)).to_pylist()) == {"train", "pool", "val"}


def test_val_is_part_of_the_key_only_if_it_selects(clips: pa.Table, tmp_path: Path) -> None:
    config = replace(TINY, recipe="tiny", storage=str(tmp_path), data=DataConfig(dataset="table"))

    def keys(table: pa.Table, config: Config = config) -> dict[str, str]:
        return {name: node.key for name, node in Plan(config, table, Folder(str(tmp_path)), "finetune").nodes.items()}

    folder = tmp_path / "clips"
    folder.mkdir()
    many = write_clips(folder, 220)
    for whole, matters in ((clips, False), (many, True)):
        assert selection(whole, ["high", "low"]).best is matters
        last = max(number for number, split in enumerate(whole["split"].to_pylist()) if split == "val")
        fewer = pa.concat_tables([whole.slice(0, last), whole.slice(last + 1)])
        assert selection(fewer, ["high", "low"]).best is matters
        assert (keys(whole)["finetune"] != keys(fewer)["finetune"]) is matters
        assert keys(whole)["pretrain"] == keys(fewer)["pretrain"]
        more_test = whole.filter(pc.not_equal(whole["split"], "test_a"))
        assert keys(more_test)["finetune"] == keys(whole)["finetune"]


def test_a_stage_with_its_own_steps_validates_as_often(
    rich: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated = scored(monkeypatch, SCORES)
    spec: StageSpec = make_spec(rich, tmp_path / "cnn", "finetune", SHORT, cnn="test_resnet", steps=20)
    run_stage(spec, BareSession(rich, spec.artifact))
    assert len(validated) == 10
    assert spec.artifact.result()["selection"]["step"] == 10
