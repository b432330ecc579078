"""A step of the weights: skipped, on the device alone, where its gradient isn't finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raymae.features.store import FeatureStore
from raymae.storage.commits import latest_step
from raymae.storage.events import read_events
from raymae.training.run_stage import build_task
from raymae.training.spec import StageSpec
from raymae.training.tasks.base import TrainingError
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession
from tests.support.training import TINY, make_spec

GROUPS: dict[str, Any] = {"mixing_group": 4, "micro_batch_size": 8}
"""Two passes a step."""
CONFIG = replace(TINY, pretrain=replace(TINY.pretrain, warmup_epochs=0, max_bad_steps=3, **GROUPS))


def of_precision(precision: Any) -> Any:
    return replace(CONFIG, pretrain=replace(CONFIG.pretrain, precision=precision))


def start(spec: StageSpec, bad: Callable[[int], bool]) -> Trainer:
    """A trainer of which some steps have a second pass whose loss isn't finite."""
    task = build_task(spec)
    real, size = task.training_step, task.order.global_batch_size

    def step(model: Any, batch: Any, totals: Any) -> Any:
        loss, metrics = real(model, batch, totals)
        spoiled = bad(batch.key // size) and batch.key % size
        return (loss * float("inf") if spoiled else loss), metrics

    task.training_step = step  # type: ignore[method-assign]
    return Trainer.start(task, BareSession(spec.store, spec.artifact), spec.artifact)


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of the weights, and of the optimiser's moments and step counts."""
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    found = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for parameter, values in trainer.optimizer.state.items():
        found |= {f"{names[parameter]}.{kind}": value.clone() for kind, value in values.items()}
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_is_not_finite_changes_nothing(store: FeatureStore, tmp_path: Path, precision: str) -> None:
    trainer = start(make_spec(store, tmp_path, config=of_precision(precision)), lambda step: step in (1, 3))
    steps = trainer._steps()
    for number in range(5):
        before = state(trainer)
        trainer._take(steps, 0.5)
        after = state(trainer)
        if number in (1, 3):
            assert before.keys() == after.keys()
            assert all(torch.equal(value, before[name]) for name, value in after.items())
        else:
            assert not torch.equal(after["decoder_pred.weight"], before["decoder_pred.weight"])
    assert {float(value) for name, value in after.items() if name.endswith(".step")} == {3.0}
    assert trainer.step.counters.tolist() == [2, 0, 1]
    if trainer.scaler:
        assert trainer.scaler.get_scale() == 65536 / 4


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_too_many_bad_steps_in_a_row_end_the_stage_at_the_next_report(
    store: FeatureStore, tmp_path: Path, precision: str
) -> None:
    """Steps 4 to 6, and a good one before the report: rows of two before don't count."""
    config = of_precision(precision)
    config = replace(config, pretrain=replace(config.pretrain, report_steps=8, probe_clips=0, epochs=100))
    spec = make_spec(store, tmp_path, config=config)
    trainer = start(spec, lambda step: step in (0, 1, 4, 5, 6))
    message = r"3 steps in a row had a gradient that is not finite \(up to step 8\)"
    with pytest.raises(TrainingError, match=message) as error:
        trainer.run()
    assert ("bf16 has float32's range" in str(error.value)) == (precision == "fp16")
    assert trainer.progress.bad_steps == 5
    assert not read_events(spec.artifact)


def test_bad_steps_are_counted_across_a_checkpoint(
    store: FeatureStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two before it and one after it are three in a row."""
    spec = make_spec(store, tmp_path, config=CONFIG)

    def bad(step: int) -> bool:
        return step >= 1

    first = start(spec, bad)
    steps = first._steps()
    for _ in range(3):
        first._take(steps, 0.5)
    first._commit()
    first.committer.wait()
    assert latest_step(spec.artifact) == 3
    assert caplog.messages == ["2 of the steps up to 3 skipped: their gradients were not finite"]
    again = start(spec, bad)
    assert again.step.counters.tolist() == [2, 2, 2]
    with pytest.raises(TrainingError, match="3 steps in a row"):
        again.run()
    assert again.progress.step == 4


def test_what_a_step_reports_is_of_the_whole_step(store: FeatureStore, tmp_path: Path) -> None:
    """However its clips are divided; a value that isn't finite is not reported."""
    found = []
    for micro in (4, 8, 16):
        config = replace(CONFIG, pretrain=replace(CONFIG.pretrain, micro_batch_size=micro))
        trainer = start(make_spec(store, tmp_path / str(micro), config=config), lambda step: step == 1)
        steps = trainer._steps()
        trainer._take(steps, 0.5)
        found.append(trainer.step.read())
        trainer._take(steps, 0.5)
        assert ("loss" in trainer.step.read()) == (micro == 16)  # a single pass isn't spoiled
    assert found[0].keys() == found[1].keys() > {"loss", "grad_norm"}
    for one in found[1:]:
        assert one == pytest.approx(found[0], rel=1e-4)
