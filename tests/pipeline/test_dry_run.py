"""A dry run: two steps at full size, and what they say of the whole run."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from raymae.config import AudioConfig, ConsistencyConfig, DataConfig, FinetuneConfig, ModelConfig
from raymae.features.draws import Draws
from raymae.models import build_classifier
from raymae.pipeline.dry_run import dry_run, trial_steps
from raymae.pipeline.dry_run.cost import finetune_flops
from raymae.pipeline.dry_run.trial_steps import TrialSteps, few
from raymae.pipeline.plan.plan import Plan
from raymae.storage.folder import Folder, open_storage
from raymae.training.tasks.finetune import masks_of
from tests.support.audio_files import write_clips, write_table
from tests.support.killed import kill
from tests.support.training import TINY

MEGABYTES = st.floats(1, 1e5)


def test_finetune_flops_are_those_of_the_model() -> None:
    model, shape = ModelConfig(embed_dim=96, depth=3, num_heads=3), (128, 64)
    finetune = FinetuneConfig(drop_path=0.0, time_mask_ratio=0.25, freq_mask_ratio=0.5)
    audio = AudioConfig(n_mels=shape[1], clip_seconds=2.0)
    classifier = build_classifier(audio, model, finetune, num_classes=10).train()
    valid = np.ones((2, 1, 32), bool)
    drawn = classifier.draw(valid, (8, 4), Draws(0, np.arange(2)))
    masks = masks_of({name: torch.from_numpy(value) for name, value in drawn.items()})
    counter = FlopCounterMode(display=False)
    with counter:
        classifier(torch.randn(2, *shape), torch.full((2,), shape[0]), *masks).sum().backward()
    # unlike the counter, `finetune_flops` counts no head, and a gradient of the input
    assert counter.get_total_flops() == pytest.approx(2 * finetune_flops(model, finetune, *shape), rel=0.06)


def test_a_few_clips_hold_every_class(clips: pa.Table) -> None:
    found = few(clips)
    assert set(found["scene_label"].drop_null().to_pylist()) == {"low", "high"}
    assert set(found["split"].to_pylist()) == {"train", "pool"}
    assert len(found["clip_id"].unique()) == len(found)


@given(peak=MEGABYTES, base=MEGABYTES, state=MEGABYTES, clips=st.integers(1, 64))
def test_memory_grows_with_the_clips_at_once_alone(peak: float, base: float, state: float, clips: int) -> None:
    found = TrialSteps("cpu", 1, "fp32", 1, 2, 1.0, 1.0, base + state + peak, base, state, 1.0)
    assert found.needed_mb(2) == pytest.approx(found.peak_mb)
    assert found.needed_mb(clips + 1) - found.needed_mb(clips) == pytest.approx(peak / 2, rel=1e-3, abs=1e-6)
    assert pickle.loads(pickle.dumps(found)) == found  # on its way from the process that measures


@pytest.mark.slow
def test_a_run_is_rehearsed_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path, write_clips(tmp_path, 60))
    config = replace(
        TINY,
        data=DataConfig(dataset="table", tables=(str(table),)),
        unlabelled=("pseudo_labels", "consistency"),
        consistency=ConsistencyConfig(epochs=10, ratio=2),
        dry_run=True,
        seeds=2,
    )
    storage = open_storage(str(tmp_path / "storage"))
    found = dry_run.dry_run(config, "register", storage)
    assert not any(found["plan"].values())
    assert set(found["trial_steps"]) == {"pretrain", "finetune", "consistency"}
    for kind, one in found["trial_steps"].items():
        assert one["clips"] == (2 + 4 if kind == "consistency" else 2)
        assert one["seconds"] > 0
        assert one["peak_mb"] > one["base_mb"] > 100
        assert found["fits"][kind]["fits"]
        assert 0 < one["loss"] < 100
    # 24 train and 12 pool clips, 12 labels and 12 clips to pseudo-label
    assert found["costs"]["pretrain"]["clips"] == 8 * 36
    assert found["costs"]["finetune"]["clips"] == 30 * 12
    assert found["costs"]["student"]["clips"] == 30 * 24
    assert (found["costs"]["consistency"]["clips"], found["costs"]["consistency"]["steps"]) == (10 * 12 * 3, 15)
    assert found["costs"]["consistency"]["gpu_hours"] > 10 / 30 * 3 * found["costs"]["finetune"]["gpu_hours"]
    assert found["costs"]["pretrain"]["hours"] == pytest.approx(
        8 * 36 * found["trial_steps"]["pretrain"]["seconds"] / 2 / 3600
    )
    said = capsys.readouterr().out
    assert "pretrain on a GPU, by arithmetic: about" in said
    assert {kind: one["clips"] for kind, one in found["gpu_memory"].items()} == {"pretrain": 8, "finetune": 8}
    assert "2 clips at once (not 8, for a CPU)" in said
    assert "6 clips at once (not 24, for a CPU)" in said
    assert "12 labels and 12 unlabelled clips, 1 to 2 in each of 15 steps" in said
    assert "in all for 2 seeds at most" in said
    assert (storage / "artifacts").names() == []


def test_what_was_killed_does_not_fit(clips: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_steps, "train", kill)
    assert trial_steps.run_trial(TINY, "pretrain", clips) is None
    plan = Plan(TINY, clips, Folder("/nowhere"), "pretrain")
    assert not dry_run.fit(TINY, "pretrain", None)["fits"]
    assert dry_run.stage_cost(plan, "pretrain", {"pretrain": None})["hours"] is None  # type: ignore[index]
